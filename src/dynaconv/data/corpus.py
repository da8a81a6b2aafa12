"""Reading, cleaning and splitting parallel text."""

import bz2
import gzip
import logging
import lzma
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .config import DataConfig
from .splits import hold_out, near_duplicate_groups, near_duplicate_key

logger = logging.getLogger("dynaconv")
_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


class ParallelText(NamedTuple):
    """Sentences and their translations, equally many."""

    source: list[str]
    target: list[str]


def load_parallel(config: DataConfig, cache_dir: Path | None = None) -> dict[str, ParallelText]:
    """Read, clean and split what a configuration names: {"train", "valid", "test"}.

    Training text is cleaned: whitespace and Unicode (NFC) normalised; pairs dropped that are empty on a side, too long,
    of very different lengths, untranslated (equal sides of 4 words or more; shorter ones may be names), or that repeat
    a source or a target seen before. Given validation and test files are only normalised. Where there are none, groups
    of near-duplicates are drawn at random, one pair of each is held out, and the others are dropped. Training pairs
    that nearly repeat a given validation or test pair, on either side, are dropped too. What is dropped is logged.

    Args:
        config: the text.
        cache_dir: of downloads; None: :func:`dynaconv.data.dataset.cache_directory`.

    Raises:
        ValueError: text that cannot be used; the message names file and line, or what was dropped and why.
        FileNotFoundError: no such file.
        RuntimeError: a download failed.
    """
    _check_train(config)
    train = _clean(_read_train(config, cache_dir), config)
    given = {
        split: ParallelText(*map(_normalize, read_parallel(spec, config)))
        for split, spec in (("valid", config.valid), ("test", config.test))
        if spec is not None
    }
    for split, text in given.items():
        if not text.source:
            raise ValueError(f"data.{split} {getattr(config, split)} has no lines")
    if not config.near_duplicates:
        train = _without_near_duplicates(train, list(given.values()))
    sizes = {
        split: size for split, size in (("valid", config.valid_size), ("test", config.test_size)) if split not in given
    }
    for split, size in sizes.items():
        if size < 1:
            raise ValueError(f"data.{split}_size must be at least 1, got {size}; or give data.{split}")
    groups = list(range(len(train.source))) if config.near_duplicates or not sizes else near_duplicate_groups(train)
    drawn, rest = hold_out(groups, list(sizes.values()), config.seed)
    if sizes:
        repeated = len(groups) - len(rest) - sum(sizes.values())
        logger.info("held out %s pairs; dropped their %s near-duplicates", f"{sum(sizes.values()):,}", f"{repeated:,}")
    held_out = given | {split: _take(train, indices) for split, indices in zip(sizes, drawn, strict=True)}
    return {"train": _take(train, rest), "valid": held_out["valid"], "test": held_out["test"]}


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
        from .huggingface import read_dataset

        return read_dataset(spec, config.source_lang, config.target_lang)
    if config.format == "text":
        return _read_text(spec, config)
    return _read_tsv(Path(spec), config.source_column, config.target_column)


def source_files(config: DataConfig, cache_dir: Path | None = None) -> list[Path]:
    """The files that :func:`load_parallel` reads, also where one does not exist; none for a dataset on the hub.

    Debian's package descriptions are fetched by it, since they are a file from then on.

    Args:
        config: the text.
        cache_dir: of downloads; None: :func:`dynaconv.data.dataset.cache_directory`.

    Raises:
        ValueError: the configuration names no text, or text that is not offered.
        RuntimeError: a download failed.
    """
    _check_train(config)
    given = [spec for spec in (config.valid, config.test) if spec is not None]
    if config.train is not None:
        return [path for spec in (config.train, *given) for path in _files(spec, config)]
    from .debian import description_files

    train = description_files(config.source_lang, config.target_lang, _debian_folder(cache_dir))
    return train + [path for spec in given for path in _files(spec, config)]


def existing_file(path: Path) -> Path:
    """The same path.

    Raises:
        FileNotFoundError: no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path.absolute()}: check the path and data.format")
    return path


def _check_train(config: DataConfig) -> None:
    if config.format != "debian" and config.train is None:
        raise ValueError(f"data.train must be given for data.format {config.format}")
    if config.format == "debian" and config.train is not None:
        raise ValueError(
            f"data.format debian reads no data.train, got {config.train}: set data.format to tsv, or remove it"
        )


def _read_train(config: DataConfig, cache_dir: Path | None) -> ParallelText:
    if config.train is not None:
        return read_parallel(config.train, config)
    from .debian import read_descriptions

    return read_descriptions(config.source_lang, config.target_lang, _debian_folder(cache_dir))


def _debian_folder(cache_dir: Path | None) -> Path:
    from .dataset import cache_directory

    return (cache_dir or cache_directory()) / "debian"


def _files(spec: str, config: DataConfig) -> list[Path]:
    """What `read_parallel` reads."""
    if config.format == "huggingface":
        from .huggingface import dataset_files

        return dataset_files(spec)
    if config.format == "text":
        return _text_files(spec, config)
    return [Path(spec)]


def _text_files(prefix: str, config: DataConfig) -> list[Path]:
    return [Path(f"{prefix}.{language}") for language in (config.source_lang, config.target_lang)]


def _read_text(prefix: str, config: DataConfig) -> ParallelText:
    paths = _text_files(prefix, config)
    source, target = ([line for _, line in _lines(path)] for path in paths)
    if len(source) != len(target):
        raise ValueError(
            f"{paths[0]} has {len(source):,} lines but {paths[1]} has {len(target):,}: they must be aligned"
        )
    return ParallelText(source, target)


def _read_tsv(path: Path, source_column: int, target_column: int) -> ParallelText:
    if min(source_column, target_column) < 0:
        raise ValueError(f"tsv columns are counted from 0, got {source_column} and {target_column}")
    columns = max(source_column, target_column) + 1
    text = ParallelText([], [])
    for number, line in _lines(path):
        fields = line.split("\t")
        if len(fields) < columns:
            raise ValueError(
                f"{path}, line {number}: expected at least {columns} tab-separated columns, found {len(fields)}: "
                "set data.source_column and data.target_column, or mend the line"
            )
        text.source.append(fields[source_column])
        text.target.append(fields[target_column])
    return text


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines of a UTF-8 file, compressed or not, with or without a byte-order mark."""
    existing_file(path)
    number = 0
    try:
        with _OPENERS.get(path.suffix, open)(path, "rb") as file:
            for number, line in enumerate(file, 1):
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}, line {number}: not valid UTF-8 ({error.reason}): convert the file") from None
    except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as a {path.suffix} file ({error}): it may be damaged") from None


def _normalize(lines: list[str]) -> list[str]:
    return [unicodedata.normalize("NFC", " ".join(line.split())) for line in lines]


def _take(text: ParallelText, indices: list[int]) -> ParallelText:
    return ParallelText([text.source[i] for i in indices], [text.target[i] for i in indices])


def _clean(text: ParallelText, config: DataConfig) -> ParallelText:
    kept: dict[str, str] = {}
    targets: set[str] = set()
    dropped: Counter[str] = Counter()
    for source, target in zip(*map(_normalize, text), strict=True):
        a, b = source.count(" ") + 1, target.count(" ") + 1
        if not source or not target:
            dropped["empty"] += 1
        elif max(a, b) > config.max_words:
            dropped[f"longer than {config.max_words} words"] += 1
        elif max(a, b) > config.max_ratio * min(a, b) + 3:
            dropped[f"sides differ by more than {config.max_ratio} x + 3 words"] += 1
        elif source == target and a >= 4:
            dropped["untranslated"] += 1
        elif source in kept or target in targets:
            dropped["repeated"] += 1
        else:
            kept[source] = target
            targets.add(target)
    summary = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items()) or "none"
    logger.info("kept %s of %s pairs; dropped: %s", f"{len(kept):,}", f"{len(text.source):,}", summary)
    if not kept:
        raise ValueError(
            f"the corpus is empty after cleaning ({len(text.source):,} pairs read; dropped: {summary}): give other text"
        )
    return ParallelText(list(kept), list(kept.values()))


def _without_near_duplicates(train: ParallelText, held_out: list[ParallelText]) -> ParallelText:
    if not held_out:
        return train
    keys = [{near_duplicate_key(line) for text in held_out for line in text[side]} for side in (0, 1)]
    kept = [
        i
        for i, (source, target) in enumerate(zip(*train, strict=True))
        if near_duplicate_key(source) not in keys[0] and near_duplicate_key(target) not in keys[1]
    ]
    logger.info(
        "dropped %s training pairs that nearly repeat given held-out ones", f"{len(train.source) - len(kept):,}"
    )
    if not kept:
        raise ValueError(
            f"all {len(train.source):,} training pairs nearly repeat data.valid or data.test: give other text, or set "
            "data.near_duplicates"
        )
    return _take(train, kept)
