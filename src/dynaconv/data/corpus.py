"""Reading, cleaning and splitting parallel text."""

import bz2
import gzip
import logging
import lzma
import random
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from .config import DataConfig

logger = logging.getLogger("dynaconv")
_OPENERS: dict[str, Callable[..., IO[bytes]]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


class ParallelText(NamedTuple):
    """Sentences and their translations."""

    source: list[str]
    target: list[str]


def load_parallel(config: DataConfig, cache_dir: Path) -> dict[str, ParallelText]:
    """Read, clean and split what a configuration names: {"train", "valid", "test"}.

    Training text is cleaned (whitespace and Unicode normalised, empty, overlong and unbalanced pairs and repetitions
    dropped). Given validation and test files are only normalised. Held-out pairs are drawn at random. Training pairs
    that are near-duplicates of a held-out pair, on either side, are dropped: see :func:`near_duplicate_key`.

    Raises:
        ValueError: text that cannot be used; the message names file and line, or what was dropped and why.
        FileNotFoundError: no such file.
    """
    if config.format == "debian":
        from .debian import read_descriptions

        train = read_descriptions(config.source_lang, config.target_lang, cache_dir / "debian")
    elif config.train is None:
        raise ValueError(f"data.train must be given for data.format {config.format}")
    else:
        train = read_parallel(config.train, config)
    train = _clean(train, config)
    held_out: dict[str, ParallelText] = {}
    for split, spec, size in (("valid", config.valid, config.valid_size), ("test", config.test, config.test_size)):
        if spec is None:
            train, held_out[split] = _hold_out(train, size, random.Random(f"{config.seed} {split}"))  # noqa: S311
        else:
            held_out[split] = _normalize_all(read_parallel(spec, config))
    if not config.near_duplicates:
        train = _without_near_duplicates(train, list(held_out.values()))
    if not train.source:
        raise ValueError("no training pair is left after setting aside the validation and test text: give more text")
    return {"train": train, **held_out}


def read_parallel(spec: str, config: DataConfig) -> ParallelText:
    """Read one source of parallel text as it is.

    Args:
        spec: a value of `config.train`, `valid` or `test`.
        config: gives format, languages and columns.

    Raises:
        ValueError: text that cannot be used; the message names file and line.
        FileNotFoundError: no such file.
    """
    if config.format == "huggingface":
        return _read_dataset(spec, config)
    if config.format == "text":
        paths = [Path(f"{spec}.{language}") for language in (config.source_lang, config.target_lang)]
        source, target = ([line for _, line in _lines(path)] for path in paths)
        if len(source) != len(target):
            raise ValueError(f"{paths[0]} has {len(source)} lines but {paths[1]} has {len(target)}: they must be aligned")
        return ParallelText(source, target)
    columns = max(config.source_column, config.target_column) + 1
    source, target = [], []
    for number, line in _lines(Path(spec)):
        fields = line.split("\t")
        if len(fields) < columns:
            raise ValueError(
                f"{spec}, line {number}: expected at least {columns} tab-separated columns, found {len(fields)}: "
                "set data.source_column and data.target_column, or mend the line"
            )
        source.append(fields[config.source_column])
        target.append(fields[config.target_column])
    return ParallelText(source, target)


def near_duplicate_key(text: str) -> str:
    """What two near-duplicates have in common: case-folded words, without any that hold digits or other signs."""
    folded = text.casefold()
    words = (word.strip(".,;:!?()[]\"'„“”‚‘’«»…") for word in folded.split())
    return " ".join(word for word in words if word.isalpha()) or folded


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    with _OPENERS.get(path.suffix, open)(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield number, line.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}, line {number}: not valid UTF-8 ({error.reason}): convert the file") from None


def _read_dataset(spec: str, config: DataConfig) -> ParallelText:
    try:
        import datasets
    except ImportError:
        raise ValueError('data.format huggingface needs the datasets package: pip install "dynaconv[datasets]"') from None
    name, _, split = spec.partition("@")
    name, _, subset = name.partition(":")
    if Path(name).suffix in (".json", ".jsonl", ".parquet", ".csv"):
        kind = {"jsonl": "json"}.get(Path(name).suffix[1:], Path(name).suffix[1:])
        rows = datasets.load_dataset(kind, data_files=name, split=split or "train")
    else:
        rows = datasets.load_dataset(name, subset or None, split=split or "train")
    if "translation" in rows.column_names:
        rows = rows.with_format(None)
        pairs = rows["translation"]
        languages = set(pairs[0]) if len(pairs) else set()
    else:
        pairs, languages = rows, set(rows.column_names)
    missing = {config.source_lang, config.target_lang} - languages
    if missing:
        raise ValueError(f"dataset {spec} has no {', '.join(sorted(missing))}; it has {', '.join(sorted(languages))}")
    return ParallelText([p[config.source_lang] for p in pairs], [p[config.target_lang] for p in pairs])


def _normalize(text: str) -> str:
    return unicodedata.normalize("NFC", " ".join(text.split()))


def _normalize_all(text: ParallelText) -> ParallelText:
    return ParallelText([_normalize(s) for s in text.source], [_normalize(t) for t in text.target])


def _clean(text: ParallelText, config: DataConfig) -> ParallelText:
    kept: dict[str, str] = {}
    targets: set[str] = set()
    dropped: Counter[str] = Counter()
    for source, target in zip(*_normalize_all(text), strict=True):
        a, b = source.count(" ") + 1, target.count(" ") + 1
        if not source or not target:
            dropped["empty"] += 1
        elif max(a, b) > config.max_words:
            dropped[f"longer than {config.max_words} words"] += 1
        elif max(a, b) > config.max_ratio * min(a, b) + 3:
            dropped[f"sides differ by more than {config.max_ratio} x + 3 words"] += 1
        elif source in kept or target in targets:
            dropped["repeated"] += 1
        else:
            kept[source] = target
            targets.add(target)
    summary = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items()) or "none"
    logger.info("kept %s of %s pairs; dropped: %s", f"{len(kept):,}", f"{len(text.source):,}", summary)
    if not kept:
        raise ValueError(f"the corpus is empty after cleaning ({len(text.source)} pairs read; dropped: {summary})")
    return ParallelText(list(kept), list(kept.values()))


def _hold_out(text: ParallelText, size: int, rng: random.Random) -> tuple[ParallelText, ParallelText]:
    if size >= len(text.source):
        raise ValueError(f"cannot hold out {size} of {len(text.source)} pairs: lower data.valid_size and data.test_size")
    chosen = set(rng.sample(range(len(text.source)), size))
    parts = [[i for i in range(len(text.source)) if (i in chosen) == held] for held in (False, True)]
    rest, held = (ParallelText([text.source[i] for i in part], [text.target[i] for i in part]) for part in parts)
    return rest, held


def _without_near_duplicates(train: ParallelText, held_out: list[ParallelText]) -> ParallelText:
    keys = [{near_duplicate_key(line) for part in held_out for line in part[side]} for side in (0, 1)]
    kept = [
        (source, target)
        for source, target in zip(*train, strict=True)
        if near_duplicate_key(source) not in keys[0] and near_duplicate_key(target) not in keys[1]
    ]
    logger.info("dropped %s training pairs that nearly repeat held-out ones", f"{len(train.source) - len(kept):,}")
    return ParallelText([s for s, _ in kept], [t for _, t in kept])
