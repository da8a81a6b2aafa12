"""Documents: read, split, and tokenized once."""

import json
import logging
from dataclasses import asdict, dataclass, replace
from glob import escape
from itertools import groupby
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ...data import store
from ...data.arrays import TokenArrays, write_tokens
from ...data.documents import COLUMN, PackedRows
from ...data.sources import SOURCES, Columns
from ...data.splits import split_text
from ...data.text import Text
from ...data.tokenizer import tokenize
from ...data.vocabulary import learn_vocabulary
from .recipe import DataConfig, Recipe, TokenizerConfig

logger = logging.getLogger("dynaconv")

TEXT = "text"
SPLITS = ("train", "valid", "test")
_FORMAT = 2  # raise it whenever the same configuration would give other arrays
_SOURCES = {"text": "plain", "tsv": "tsv", "huggingface": "huggingface"}


@dataclass
class Corpus:
    """A tokenizer, rows of the splits, and how many documents, tokens and bytes each of them has."""

    tokenizer: PreTrainedTokenizerBase
    train: TokenArrays
    valid: TokenArrays
    test: TokenArrays
    sizes: dict[str, dict[str, int]]
    """{split: {"documents", "tokens" (those that are predicted), "bytes" (with a line feed after each document), "cut"
    (documents whose end is left out)}}."""
    directory: Path

    def save_text(self, folder: Path) -> None:
        """Write the held-out text as `valid.txt` and `test.txt`; empty lines part documents of several lines."""
        for split in SPLITS[1:]:
            (folder / f"{split}.txt").write_bytes((self.directory / f"{split}.txt").read_bytes())


def prepare(data: DataConfig, tokenizer: TokenizerConfig, cache: Path | None = None) -> Corpus:
    """Read, split and tokenize documents, or find the result of an earlier call with the same input.

    The same input: equal configurations, and path, size and modification time of the files that the text comes from.

    Args:
        data: the text.
        tokenizer: the vocabulary.
        cache: of the result; None: :func:`dynaconv.data.store.cache_directory`.

    Raises:
        ValueError: text that cannot be used, too little of it, or a tokenizer that ends no document.
        FileNotFoundError: no such file.
    """
    cache = cache or store.cache_directory()
    specs = _given(data)
    source = SOURCES[_SOURCES[data.format]]
    files = [path for spec in specs.values() for path in source.files(spec, _columns(data), cache)]
    folder = Path(tokenizer.folder) if tokenizer.folder else None
    if folder is not None and folder.is_dir():
        files += [
            path for path in folder.iterdir() if "token" in path.name or path.name in ("vocab.json", "merges.txt")
        ]
    # Rows are cut when they are read.
    said = {name: value for name, value in asdict(data).items() if name != "window" or data.rows == "documents"}
    key = [_FORMAT, said, asdict(tokenizer), store.state_of(files)]
    made = store.made_once(
        cache / "prepared", key, lambda folder: _write(load_documents(data, cache), data, tokenizer, folder)
    )
    train, valid, test = (
        TokenArrays(made, split, (COLUMN,))  # cut to the window when they were written
        if data.rows == "documents"
        else PackedRows(made, split, data.window, remainder=split != "train")
        for split in SPLITS
    )
    sizes = json.loads((made / "sizes.json").read_text("utf-8"))
    load: Any = AutoTokenizer.from_pretrained
    return Corpus(load(made, trust_remote_code=False), train, valid, test, sizes, made)


def vocabulary_of(recipe: Recipe) -> TokenizerConfig:
    """The vocabulary of a recipe: a model that it goes on with keeps its own."""
    if recipe.tokenizer.folder is None and recipe.model.folder is not None:
        return replace(recipe.tokenizer, folder=recipe.model.folder)
    return recipe.tokenizer


def load_documents(config: DataConfig, cache: Path | None = None) -> dict[str, list[str]]:
    """Read and split what a configuration names: {"train", "valid", "test"}.

    Empty documents are dropped, and of equal ones of the training text all but the first. Where validation and test
    text are not given, groups of near-duplicates are drawn at random, one document of each is held out, and the others
    are dropped; training documents that nearly repeat given ones are dropped too. What is dropped is logged.

    Args:
        config: the text.
        cache: of downloads; None: :func:`dynaconv.data.store.cache_directory`.

    Raises:
        ValueError: text that cannot be used, or nothing to train on.
        FileNotFoundError: no such file.
    """
    given: dict[str, Text] = {}
    for split, spec in _given(config).items():
        read = _read(spec, config, cache or store.cache_directory())
        kept = [document for document in read if document.strip()]
        kept = list(dict.fromkeys(kept)) if split == "train" else kept
        if not kept:
            raise ValueError(f"data.{split} {spec} has no text")
        if len(kept) < len(read):
            logger.info("%s: kept %s of %s documents", split, f"{len(kept):,}", f"{len(read):,}")
        given[split] = {TEXT: kept}
    train = given.pop("train")
    sizes = {split: getattr(config, f"{split}_size") for split in SPLITS[1:] if split not in given}
    found = split_text(train, given, sizes, unit="documents", near_duplicates=config.near_duplicates, seed=config.seed)
    return {split: text[TEXT] for split, text in found.items()}


def _given(config: DataConfig) -> dict[str, str]:
    if config.train is None:
        raise ValueError("data.train must be given: files of text, or a dataset")
    specs = {"train": config.train, "valid": config.valid, "test": config.test}
    return {split: spec for split, spec in specs.items() if spec is not None}


def _columns(config: DataConfig) -> Columns:
    return {TEXT: config.number if config.format == "tsv" else config.column}


def _read(spec: str, config: DataConfig, cache: Path) -> list[str]:
    """The documents; none goes on from one file into another."""
    source, columns = SOURCES[_SOURCES[config.format]], _columns(config)
    if config.format != "text" or config.documents == "line":
        return source.read(spec, columns, cache)[TEXT]
    files = (source.read(escape(str(path)), columns, cache)[TEXT] for path in source.files(spec, columns, cache))
    if config.documents == "file":
        return ["\n".join(lines) for lines in files]
    return [
        "\n".join(group)
        for lines in files
        for empty, group in groupby(lines, lambda line: not line.strip())
        if not empty
    ]


def _write(splits: dict[str, list[str]], data: DataConfig, config: TokenizerConfig, folder: Path) -> None:
    if config.folder is None:
        logger.info("learning a vocabulary of %d from %s documents", config.vocab_size, f"{len(splits['train']):,}")
        tokenizer: Any = learn_vocabulary(splits["train"], config.kind, config.vocab_size)
    else:
        load: Any = AutoTokenizer.from_pretrained
        tokenizer = load(config.folder, trust_remote_code=False)
        if not hasattr(tokenizer, "backend_tokenizer"):
            raise ValueError(f"the tokenizer in {config.folder} has no tokenizer.json: convert it to a fast one")
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    tokenizer.save_pretrained(folder)
    last = tokenizer.eos_token_id
    if last is None:
        raise ValueError(f"the tokenizer in {config.folder} has no token that ends a text (eos_token)")
    first = last if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    limit = data.window if data.rows == "documents" else None
    sizes = {}
    for split, documents in splits.items():
        tokens, lengths = tokenize(documents, tokenizer, f"tokenizing {split}", limit, between=(first, last))
        write_tokens(folder, split, COLUMN, tokens, lengths)
        sizes[split] = {
            "documents": len(documents),
            "tokens": len(tokens) - len(documents),
            "bytes": sum(len(document.encode()) + 1 for document in documents),
            "cut": sum(length == limit for length in lengths),
        }
        if sizes[split]["cut"]:
            logger.info("%s: %s documents are cut at %s tokens", split, f"{sizes[split]['cut']:,}", limit)
        if split != "train":
            end = "\n\n" if any("\n" in text for text in documents) else "\n"
            (folder / f"{split}.txt").write_text("".join(f"{text}{end}" for text in documents), encoding="utf-8")
    (folder / "sizes.json").write_text(json.dumps(sizes), encoding="utf-8")
