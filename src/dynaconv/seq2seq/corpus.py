"""Pairs of texts: read, cleaned, split, and tokenized once."""

import json
import logging
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from ..data import store
from ..data.arrays import TokenArrays, write_tokens
from ..data.moses import cut_words
from ..data.sources import SOURCES, Columns
from ..data.splits import split_text
from ..data.text import Text, count_rows, normalize, take
from ..data.tokenizer import (
    TokenizerConfig,
    Tokenizers,
    load_tokenizers,
    moses_language,
    save_tokenizers,
    tokenize,
    train_tokenizers,
)
from ..training.bounds import Count, Positive, Seed

logger = logging.getLogger("dynaconv")

SIDES = ("source", "target")
SPLITS = ("train", "valid", "test")
_FORMAT = 5  # raise it whenever the same configuration would give other arrays


@dataclass
class PairConfig:
    """Pairs of texts: where they come from, how they are cleaned and split. A task says the rest by its methods."""

    format: Literal["tsv", "text", "huggingface", "iwslt", "debian"] = "tsv"
    """tsv: a pair per line; text: two aligned files; huggingface: a dataset; iwslt: files of its campaigns; debian: its
    package descriptions."""
    train: str | None = None
    """tsv: FILE (also .gz, .bz2, .xz). text: PREFIX of PREFIX.NAME for each side. huggingface: NAME[:CONFIG][@SPLIT],
    or a local file or folder. iwslt: PREFIX[,PREFIX..]. debian: none."""
    valid: str | None = None
    """The same for the validation set (debian: a tsv file); None: held out from the training text."""
    test: str | None = None
    """The same for the test set (debian: a tsv file); None: held out from the training text."""
    source_column: Count = 0
    """Of a tsv file, counted from 0."""
    target_column: Count = 1
    """Of a tsv file, counted from 0."""
    valid_size: Positive = 1000
    """Pairs, where they are held out."""
    test_size: Positive = 1000
    """Pairs, where they are held out."""
    valid_every: Count = 0
    """Hold every so manieth training pair out for validation, as the paper's scripts do; 0: `valid_size` at random."""
    near_duplicates: bool = False
    """Keep training pairs that nearly repeat a held-out one; scores on the held-out text then measure memory too."""
    seed: Seed = 1
    """Of the choice of held-out pairs."""

    def names(self) -> dict[str, str]:
        """{side: what aligned files, datasets and Debian call it}."""
        raise NotImplementedError

    def languages(self) -> dict[str, str] | None:
        """{side: language}; None where it is not known."""
        return None

    def limits(self) -> dict[str, int | None]:
        """{side: tokens to which it is cut, with the end of sequence; None: it is not}."""
        return dict.fromkeys(SIDES)

    def usual_lengths(self) -> dict[str, int]:
        """{side: tokens of a usual sequence}, for what a run costs where the data is not there."""
        return dict.fromkeys(SIDES, 32)

    def reason_to_drop(self, source: str, target: str) -> str | None:
        """Why a training pair of which no side is empty is not good enough; None: it is."""
        return None

    def format_of(self, spec: str) -> str:
        """The format of one of `train`, `valid` and `test`."""
        return "tsv" if self.format == "debian" and spec else self.format

    def columns_of(self, spec: str) -> Columns:
        """{side: column} of one of `train`, `valid` and `test`."""
        if self.format_of(spec) == "tsv":
            return {"source": self.source_column, "target": self.target_column}
        return self.names()


@dataclass
class Corpus:
    """Tokenizers, token arrays of the three splits with columns "source" and "target", and the held-out text."""

    tokenizers: Tokenizers
    train: TokenArrays
    valid: TokenArrays
    test: TokenArrays
    text: dict[str, Text]
    """{"valid", "test"}, in the order of the arrays."""
    directory: Path

    @property
    def joint(self) -> bool:
        """Both sides share a vocabulary."""
        return self.tokenizers["source"] is self.tokenizers["target"]

    def save_text(self, folder: Path) -> None:
        """Write the held-out text as `valid.tsv` and `test.tsv`."""
        for split, text in self.text.items():
            lines = (f"{source}\t{target}\n" for source, target in zip(*text.values(), strict=True))
            (folder / f"{split}.tsv").write_text("".join(lines), encoding="utf-8")


def prepare(data: PairConfig, tokenizer: TokenizerConfig, cache: Path | None = None) -> Corpus:
    """Read, clean, split and tokenize pairs of texts, or find the result of an earlier call with the same input.

    The same input: equal configurations, and path, size and modification time of the files that the text comes from.

    Args:
        data: the text.
        tokenizer: the vocabulary.
        cache: of the result and of downloads; None: :func:`dynaconv.data.store.cache_directory`.

    Raises:
        ValueError: text that cannot be used, see :func:`load_pairs`.
        FileNotFoundError: no such file.
        RuntimeError: a download failed.
    """
    cache = cache or store.cache_directory()
    if tokenizer.moses and data.languages() is None:
        raise ValueError("tokenizer.moses needs the languages, which this task does not have: set it to false")
    files = [
        path
        for spec in _given(data).values()
        for path in SOURCES[data.format_of(spec)].files(spec, data.columns_of(spec), cache)
    ]
    files += Path(tokenizer.folder).glob("**/*token*") if tokenizer.folder else []
    key = [_FORMAT, asdict(data), asdict(tokenizer), store.state_of(files)]
    folder = store.made_once(
        cache / "prepared", key, lambda folder: _write(load_pairs(data, cache), data, tokenizer, folder)
    )
    text = {
        split: dict(zip(SIDES, json.loads((folder / f"{split}.json").read_text("utf-8")), strict=True))
        for split in SPLITS[1:]
    }
    train, valid, test = (TokenArrays(folder, split, SIDES) for split in SPLITS)
    return Corpus(load_tokenizers(folder, SIDES), train, valid, test, text, folder)


def load_pairs(config: PairConfig, cache: Path | None = None) -> dict[str, Text]:
    """Read, clean and split what a configuration names: {"train", "valid", "test"}.

    Training text is cleaned: whitespace and Unicode (NFC) normalised; pairs dropped that are empty on a side, that the
    configuration finds not good enough, or that repeat a source or a target seen before. Given validation and test
    files are only normalised. Where there are none, groups of near-duplicates are drawn at random, one pair of each is
    held out, and the others are dropped. Training pairs that nearly repeat a given validation or test pair, on either
    side, are dropped too. What is dropped is logged.

    Args:
        config: the text.
        cache: of downloads; None: :func:`dynaconv.data.store.cache_directory`.

    Raises:
        ValueError: text that cannot be used; the message names file and line, or what was dropped and why.
        FileNotFoundError: no such file.
        RuntimeError: a download failed.
    """
    given = {split: read_pairs(spec, config, cache) for split, spec in _given(config).items()}
    train = _clean(given.pop("train"), config)
    if config.valid_every and "valid" not in given:
        rows = range(config.valid_every - 1, count_rows(train), config.valid_every)
        given["valid"] = take(train, rows)
        train = take(train, sorted(set(range(count_rows(train))) - set(rows)))
    given = {split: {side: normalize(lines) for side, lines in text.items()} for split, text in given.items()}
    for split, text in given.items():
        if not count_rows(text):
            where = getattr(config, split) or f"of one training pair in {config.valid_every}"
            raise ValueError(f"data.{split} {where} has no lines")
    sizes = {split: getattr(config, f"{split}_size") for split in SPLITS[1:] if split not in given}
    return split_text(train, given, sizes, unit="pairs", near_duplicates=config.near_duplicates, seed=config.seed)


def read_pairs(spec: str, config: PairConfig, cache: Path | None = None) -> Text:
    """Read one source of pairs of texts as it is: {"source", "target"}.

    Args:
        spec: a value of `config.train`, `valid` or `test`; "" where the format has one text only.
        config: gives format, languages and columns.
        cache: of downloads; None: :func:`dynaconv.data.store.cache_directory`.

    Raises:
        ValueError: text that cannot be used; the message names file and line.
        FileNotFoundError: no such file.
        RuntimeError: a download failed.
    """
    source = SOURCES[config.format_of(spec)]
    return source.read(spec, config.columns_of(spec), cache or store.cache_directory())


def _given(config: PairConfig) -> dict[str, str]:
    """What is read for each split that is not held out of another."""
    if config.format == "debian":
        if config.train is not None:
            raise ValueError(
                f"data.format debian reads no data.train, got {config.train}: set data.format to tsv, or remove it"
            )
    elif config.train is None:
        raise ValueError(f"data.train must be given for data.format {config.format}")
    specs = {"train": config.train or "", "valid": config.valid, "test": config.test}
    return {split: spec for split, spec in specs.items() if spec is not None}


def _clean(text: Text, config: PairConfig) -> Text:
    kept: dict[str, str] = {}
    targets: set[str] = set()
    dropped: Counter[str] = Counter()
    for source, target in zip(*map(normalize, text.values()), strict=True):
        if not source or not target:
            dropped["empty"] += 1
        elif (reason := config.reason_to_drop(source, target)) is not None:
            dropped[reason] += 1
        elif source in kept or target in targets:
            dropped["repeated"] += 1
        else:
            kept[source] = target
            targets.add(target)
    summary = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items()) or "none"
    logger.info("kept %s of %s pairs; dropped: %s", f"{len(kept):,}", f"{count_rows(text):,}", summary)
    if not kept:
        raise ValueError(
            f"the corpus is empty after cleaning ({count_rows(text):,} pairs read; dropped: {summary}): give other text"
        )
    return {"source": list(kept), "target": list(kept.values())}


def _write(splits: dict[str, Text], data: PairConfig, config: TokenizerConfig, folder: Path) -> None:
    words = splits if not config.moses else {name: _cut_words(text, data, name) for name, text in splits.items()}
    if config.folder is None:
        logger.info("learning a vocabulary of %d from %s pairs", config.vocab_size, f"{count_rows(words['train']):,}")
        tokenizers = train_tokenizers(words["train"], config, data.languages())
    else:
        tokenizers = load_tokenizers(Path(config.folder), SIDES)
        if config.moses != (moses_language(tokenizers["source"], "source") is not None):
            raise ValueError(f"tokenizer.moses must be {not config.moses}, as for the model in {config.folder}")
    save_tokenizers(tokenizers, folder)
    for split, text in words.items():
        for side, lines in text.items():
            found = tokenize(lines, tokenizers[side], f"tokenizing {split} {side}", data.limits()[side])
            write_tokens(folder, split, side, *found)
    for split in SPLITS[1:]:
        content = json.dumps(list(splits[split].values()), ensure_ascii=False)
        (folder / f"{split}.json").write_text(content, encoding="utf-8")


def _cut_words(text: Text, data: PairConfig, split: str) -> Text:
    languages = data.languages() or {}
    titles = {side: f"words of {split} {side}" if len(lines) >= 50000 else None for side, lines in text.items()}
    return {side: cut_words(lines, languages[side], titles[side]) for side, lines in text.items()}
