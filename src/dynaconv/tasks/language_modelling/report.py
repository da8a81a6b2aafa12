"""What the commands print: perplexities, and a description of a corpus."""

import json
import logging
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from ...data.lines import check_folders, read_all
from ...training.loading import first_token, load_model, read_config
from .corpus import SPLITS, prepare, vocabulary_of
from .perplexity import check_windows, predict
from .recipe import Recipe

logger = logging.getLogger("dynaconv")

Sequences = Literal["file", "line", "joined"]
WINDOW = 4096  # tokens, where the model is meant for more: their logits have to fit in memory


def print_perplexity(
    path: Path, files: Sequence[Path], *, sequences: Sequences, window: int | None, overlap: int, max_tokens: int,
    json_path: Path | None, device: str | None,
) -> None:  # fmt: skip
    """Print how well a model predicts the text of files, or of standard input.

    Args:
        path: folder of a causal language model, grafted or not, and its tokenizer.
        files: text in UTF-8.
        sequences: what is a sequence, see :func:`encode`.
        window: tokens at a time; None: what the model is meant for, but at most 4,096.
        overlap: of windows, see :func:`predict`.
        max_tokens: batch size.
        json_path: of the result.
        device: of the model; None: a GPU if there is one.

    Raises:
        FileNotFoundError: there is no model at `path`.
        ValueError: the model is an encoder-decoder, there is nothing to predict, or a window that the model does not
            take.
    """
    config = read_config(path)
    check_folders(json_path)
    if config.is_encoder_decoder:
        raise ValueError(f"the model in {path} is an encoder-decoder, no language model: give one of those")
    text = config.get_text_config()
    names = ("max_position_embeddings", "max_target_positions", "n_positions")
    limit = next((value for name in names if (value := getattr(text, name, None))), None)
    window = min(limit or WINDOW, WINDOW) if window is None else window
    if window < 1 or (limit and window > limit):
        raise ValueError(f"--window must be in 1..{limit}, what the model is meant for; got {window}")
    check_windows(window, overlap)
    model, tokenizer = load_model(path, device)
    lines = read_all(files)
    ids = encode(lines, tokenizer, sequences, bos=first_token(config), eos=getattr(text, "eos_token_id", None))
    if unknown := sum(sequence.count(tokenizer.unk_token_id) for sequence in ids):
        logger.warning("%s of %s tokens are unknown to the model", f"{unknown:,}", f"{sum(map(len, ids)):,}")
    found = predict(model, ids, window=window, overlap=overlap, max_tokens=max_tokens, progress=True)
    units = _units(lines, tokenizer, sequences)
    result = {
        "perplexity per token": found.perplexity,
        "perplexity per word": found.perplexity_of(units["words"]),
        "bits per byte": found.bits_per(units["bytes"]),
    }
    table = Table("measure", "value", title=f"{path}: {found.tokens:,} tokens, window {window}, overlap {overlap}")
    for name, value in result.items():
        table.add_row(name, f"{value:.4g}")
    Console().print(table)
    if json_path is not None:
        settings = {"model": str(path), "sequences": sequences, "window": window, "overlap": overlap}
        record = {**settings, "nats": found.nats, "tokens": found.tokens, **units, **result}
        json_path.write_text(json.dumps(record, indent=1), encoding="utf-8")


def _units(lines: Sequence[str], tokenizer: Any, sequences: Sequences) -> dict[str, int]:
    """Bytes and words of a text as it is predicted: a tokenizer may not keep the ends of its lines."""
    between = ends = len(lines)
    if sequences == "file" and tokenizer("a\nb")["input_ids"] == tokenizer("a b")["input_ids"]:
        logger.info("ends of lines are not counted: the tokenizer does not keep them; --sequences line predicts them")
        between, ends = max(0, len(lines) - 1), 0  # to it a space stands between two lines
    return {
        "bytes": sum(len(line.encode()) for line in lines) + between,
        "words": sum(len(line.split()) for line in lines) + ends,
    }


def describe_corpus(recipe: Recipe) -> None:
    """Prepare the data of a recipe and print sizes and examples."""
    corpus = prepare(recipe.data, vocabulary_of(recipe))
    table = Table("split", "documents", "tokens", "bytes", "rows", "longest row", title=str(corpus.directory))
    for split in SPLITS:
        (lengths,) = getattr(corpus, split).lengths.values()
        counts = [*corpus.sizes[split].values(), len(lengths), int(lengths.max(initial=0))]
        table.add_row(split, *(f"{count:,}" for count in counts))
    console = Console()
    console.print(table)
    for line in (corpus.directory / "test.txt").read_text("utf-8").splitlines()[:5]:
        console.print(line, markup=False, highlight=False)


def encode(
    lines: Sequence[str], tokenizer: PreTrainedTokenizerBase, sequences: Sequences, *, bos: int, eos: Any
) -> list[list[int]]:
    """Token ids of sequences, behind the token that begins each and is not predicted.

    Args:
        lines: the text.
        tokenizer: of the model.
        sequences: "file": all lines, with their ends, are one text; "line": each line is a sequence of its own, and its
            end is predicted (One Billion Word); "joined": the same, one behind the other (fairseq's
            `--sample-break-mode none`).
        bos: the token that begins a sequence.
        eos: the token that ends a sequence.

    Raises:
        ValueError: the model does not say which token ends a sequence.
    """
    begin, end = bos, eos[0] if isinstance(eos, list) else eos
    if end is None and sequences != "file":
        raise ValueError("the config.json of the model has no eos_token_id: add it")
    cut: Any = tokenizer
    if sequences == "file":
        text = "".join(f"{line}\n" for line in lines)
        return [[begin, *cut(text, add_special_tokens=False, verbose=False)["input_ids"]]]
    encoded = cut(list(lines), add_special_tokens=False)["input_ids"] if lines else []
    ended = [[*ids, end] for ids in encoded]
    return [[begin, *ids] for ids in ended] if sequences == "line" else [[begin, *chain.from_iterable(ended)]]
