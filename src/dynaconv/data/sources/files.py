"""Text in files, plain or compressed (.gz, .bz2, .xz): a tab-separated file, or a file for each column."""

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..lines import readable_file
from ..text import Text

_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


def read(spec: str, columns: Mapping[str, str | int], cache: Path) -> Text:
    """Read a file of tab-separated columns, or aligned files of one column each, as they are.

    Args:
        spec: with numbers as columns: a tab-separated file; with names: PREFIX of the files PREFIX.NAME.
        columns: {column of the result: number of the column in the file, from 0, or name}.
        cache: not used.

    Raises:
        ValueError: text that cannot be used; the message names file and line.
        FileNotFoundError: no such file.
    """
    paths = files(spec, columns, cache)
    numbers = [column for column in columns.values() if isinstance(column, int)]
    if numbers:
        return dict(zip(columns, _read_fields(paths[0], numbers), strict=True))
    lines = [[line for _, line in numbered_lines(path)] for path in paths]
    for path, column in zip(paths, lines, strict=True):
        if len(column) != len(lines[0]):
            raise ValueError(
                f"{paths[0]} has {len(lines[0]):,} lines but {path} has {len(column):,}: they must be aligned"
            )
    return dict(zip(columns, lines, strict=True))


def files(spec: str, columns: Mapping[str, str | int], cache: Path) -> list[Path]:
    """The files that `read` reads."""
    names = [column for column in columns.values() if isinstance(column, str)]
    return [Path(f"{spec}.{name}") for name in names] or [Path(spec)]


def _read_fields(path: Path, numbers: list[int]) -> list[list[str]]:
    """Columns of a tab-separated file."""
    if min(numbers) < 0:
        raise ValueError(f"columns are counted from 0, got {' and '.join(map(str, numbers))}")
    found: list[list[str]] = [[] for _ in numbers]
    for line_number, line in numbered_lines(path):
        fields = line.split("\t")
        if len(fields) <= max(numbers):
            raise ValueError(
                f"{path}, line {line_number}: expected at least {max(numbers) + 1} tab-separated columns, found "
                f"{len(fields)}: read other columns, or mend the line"
            )
        for column, number in zip(found, numbers, strict=True):
            column.append(fields[number])
    return found


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines of a UTF-8 file, compressed or not, with or without a byte-order mark."""
    readable_file(path)
    number = 0
    try:
        with _OPENERS.get(path.suffix, open)(path, "rb") as file:
            for number, line in enumerate(file, 1):
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}, line {number}: not valid UTF-8 ({error.reason}): convert the file") from None
    except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as a {path.suffix} file ({error}): it may be damaged") from None
