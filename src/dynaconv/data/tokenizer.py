"""Byte-pair encoding, trained with `tokenizers` and kept as Hugging Face tokenizers."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Lt
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from .text import EOS, SPECIAL_TOKENS, Text

Tokenizers = Mapping[str, PreTrainedTokenizerBase]
"""{column: tokenizer}, the same object where columns share a vocabulary."""


@dataclass
class TokenizerConfig:
    """Byte-pair encoding."""

    vocab_size: Annotated[int, Ge(1), Lt(2**31)] = 8000
    """Of each vocabulary, special tokens included."""
    joint: bool = True
    """One vocabulary for both languages."""
    lowercase: bool = False
    """Lower-case all text; translations come out in lower case."""
    moses: bool = False
    """Cut words by Moses' rules for each language first, as the 2019 paper did, and join those of translations."""
    folder: str | None = None
    """Take the vocabularies of the model in this folder instead of learning them."""


def train_tokenizers(
    text: Text, config: TokenizerConfig, languages: Mapping[str, str] | None = None
) -> dict[str, PreTrainedTokenizerFast]:
    """Learn a vocabulary for each column, or one for all.

    Characters beyond a third of the vocabulary, the rarest, become `<unk>`. A text with few different words may give
    a smaller vocabulary than asked for.

    Args:
        text: in words, where the configuration asks for those of Moses.
        config: the configuration.
        languages: {column: language}, for Moses.

    Returns:
        {column: tokenizer}. `tokenizer(text)` ends with `</s>`. Text that looks like a special token is text.

    Raises:
        ValueError: the vocabulary is too small for the alphabet of the text.
    """
    if config.joint:
        made = dict.fromkeys(text, _train([line for lines in text.values() for line in lines], config))
    else:
        made = {column: _train(lines, config) for column, lines in text.items()}
    if config.moses:
        for tokenizer in made.values():
            tokenizer.init_kwargs["moses"] = dict(languages or {})  # is saved with it, see `moses_language`
    return made


def moses_language(tokenizer: PreTrainedTokenizerBase, column: str) -> str | None:
    """The language by whose rules Moses cuts the words that a tokenizer has learned from; None: it does not."""
    return tokenizer.init_kwargs.get("moses", {}).get(column)


def languages_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """{column: language} of the model that a tokenizer was converted with; {}: it does not say."""
    return tokenizer.init_kwargs.get("languages", {})


def save_tokenizers(tokenizers: Tokenizers, directory: Path) -> None:
    """Write the tokenizers of a model: into its folder, or a folder in it for each column where they differ."""
    first, *others = tokenizers.values()
    if all(other is first for other in others):
        first.save_pretrained(directory)
    else:
        for column, tokenizer in tokenizers.items():
            tokenizer.save_pretrained(directory / f"{column}_tokenizer")


def load_tokenizers(directory: Path, columns: Iterable[str]) -> Tokenizers:
    """Read what :func:`save_tokenizers` wrote.

    Raises:
        FileNotFoundError: no tokenizer there.
    """
    folders = {column: directory / f"{column}_tokenizer" for column in columns}
    load: Any = partial(AutoTokenizer.from_pretrained, trust_remote_code=False)
    if all(folder.is_dir() for folder in folders.values()):
        return {column: load(folder) for column, folder in folders.items()}
    if not (directory / "tokenizer_config.json").is_file():
        names = " and ".join(folder.name for folder in folders.values())
        raise FileNotFoundError(f"no tokenizer in {directory} (tokenizer_config.json, or {names})")
    return dict.fromkeys(folders, load(directory))


def tokenize(
    lines: list[str], tokenizer: PreTrainedTokenizerBase, title: str, limit: int | None = None,
    between: tuple[int, int] | None = None,
) -> tuple[np.ndarray, list[int]]:  # fmt: skip
    """Ids of all lines one after the other, and the number of each line's.

    Args:
        lines: the text.
        tokenizer: of Hugging Face's fast ones; adds what it adds, such as the end of sequence.
        title: of the progress bar, shown for 50,000 lines and more.
        limit: tokens of a line at most, with the end of sequence: what is behind is left out; None: all of them.
        between: put every line between these tokens, and add no others.

    Returns:
        [sum of lengths] uint16, or uint32 for vocabularies over 65,536, and [N] lengths.
    """
    dtype = np.uint16 if len(tokenizer) <= 2**16 else np.uint32
    before, after = ([], []) if between is None else ([between[0]], [between[1]])
    cutter: Any = tokenizer
    parts, lengths = [], []
    with tqdm(total=len(lines), desc=title, unit="line", disable=len(lines) < 50000) as bar:
        for start in range(0, len(lines), 10000):
            encodings = cutter.backend_tokenizer.encode_batch_fast(
                lines[start : start + 10000], add_special_tokens=between is None
            )
            rows = [cut([*before, *encoding.ids, *after], limit) for encoding in encodings]
            parts.append(np.concatenate([np.array(ids, dtype) for ids in rows]))
            lengths += map(len, rows)
            bar.update(len(encodings))
    return np.concatenate(parts), lengths


def cut(ids: list[int], limit: int | None) -> list[int]:
    """The ids of a text, or as many of them as are allowed with its end."""
    return ids if limit is None or len(ids) <= limit else [*ids[: limit - 1], ids[-1]]


def _train(lines: list[str], config: TokenizerConfig) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL_TOKENS["unk_token"]))
    steps: list[normalizers.Normalizer] = [
        normalizers.NFC(),
        normalizers.Replace(Regex(r"\s+"), " "),
        normalizers.Strip(),
    ]
    if config.lowercase:
        steps.append(normalizers.Lowercase())
    tokenizer.normalizer = normalizers.Sequence(steps)
    # Words, digits and other signs apart, each sign for itself: "lib64-dev)." must not become one token.
    pieces = pre_tokenizers.Split(Regex(r"▁?\p{L}[\p{L}\p{M}]*|▁?\p{N}|▁?[^\p{L}\p{N}▁]|▁"), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(split=False), pieces])
    tokenizer.decoder = decoders.Metaspace()
    sample = "".join(lines[:: max(1, len(lines) // 20000)])  # of both languages: one stands after the other
    characters = Counter(sample.lower() if config.lowercase else sample)
    common = sum(count > characters.total() / 10000 for count in characters.values())
    limit = config.vocab_size // 3  # characters; rarer ones become <unk>
    if common > limit:
        raise ValueError(
            f"vocab_size {config.vocab_size} is too small for text with {common} common characters: "
            f"use at least {3 * common}, better thousands"
        )
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=list(SPECIAL_TOKENS.values()),
        limit_alphabet=limit,
        show_progress=False,  # it writes to standard output
    )
    tokenizer.train_from_iterator(lines, trainer, length=len(lines))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[(SPECIAL_TOKENS["eos_token"], EOS)]
    )
    return as_pretrained(tokenizer, padding_side="right")


def as_pretrained(tokenizer: Tokenizer, padding_side: str) -> PreTrainedTokenizerFast:
    """A tokenizer of Hugging Face's with our special tokens; text that looks like one of them is text."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        padding_side=padding_side,
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
        model_input_names=["input_ids", "attention_mask"],
        **SPECIAL_TOKENS,
    )
