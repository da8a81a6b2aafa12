"""Lines of plain text, compressed or not (.gz, .bz2, .xz), of one file or of many."""

from collections.abc import Mapping
from glob import glob
from pathlib import Path

from ..text import Text
from .files import numbered_lines


def read(spec: str, columns: Mapping[str, str | int], cache: Path) -> Text:
    """Read the lines of all files, in the order of their names.

    Args:
        spec: a file, or a pattern of files such as "news.en-*".
        columns: one, of the result.
        cache: not used.

    Raises:
        ValueError: not UTF-8, or a damaged file; the message names file and line.
        FileNotFoundError: no such file.
    """
    (column,) = columns
    return {column: [line for path in files(spec, columns, cache) for _, line in numbered_lines(path)]}


def files(spec: str, columns: Mapping[str, str | int], cache: Path) -> list[Path]:
    """The files that a pattern names."""
    return sorted(map(Path, glob(spec))) or [Path(spec)]
