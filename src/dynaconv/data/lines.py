"""Lines of files or of standard input, as they come."""

import logging
import os
import select
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

logger = logging.getLogger("dynaconv")


STANDARD_INPUT = Path("-")
"""A file of this name is standard input."""


class Line(NamedTuple):
    """A line of text, and where it stands, for messages."""

    text: str
    where: str


def count_lines(files: Sequence[Path]) -> int | None:
    """How many lines there are; None where they can be read only once, from standard input or a pipe.

    Raises:
        OSError: as :func:`located_lines`.
    """
    _check(files)
    if not files or not all(path.is_file() for path in files):
        return None
    count = 0
    for path in files:
        with path.open("rb") as stream:
            count += sum(1 for _ in stream)
    return count


def located_lines(files: Sequence[Path]) -> Iterator[Line | None]:
    """Lines of files or, without any or of the file "-", of standard input; None where more are to come but not yet.

    Bytes that are not UTF-8 are left out, with a warning.

    Raises:
        OSError: a file is not there, or is a folder; before a line of another one is read.
    """
    sources = files or [STANDARD_INPUT]
    if STANDARD_INPUT in sources and sys.stdin.isatty():
        logger.info("reading standard input, one sentence per line; end with Ctrl-D")
    _check(sources)
    for path in sources:
        name, number = "standard input" if path == STANDARD_INPUT else str(path), 0
        with ExitStack() as stack:
            stream: Iterable[bytes | None] = (
                arriving_lines(sys.stdin.fileno()) if path == STANDARD_INPUT else stack.enter_context(path.open("rb"))
            )
            for raw in stream:
                if raw is None:
                    yield None
                    continue
                number += 1
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8", errors="replace").rstrip("\r\n")
                if "\ufffd" in line and "\ufffd".encode() not in raw:
                    logger.warning("%s, line %d: not valid UTF-8, undecodable bytes are ignored", name, number)
                yield Line(line.replace("\ufffd", ""), f"{name}, line {number}")


def read_lines(files: Sequence[Path]) -> Iterator[str | None]:
    """The text of :func:`located_lines`."""
    return (line if line is None else line.text for line in located_lines(files))


def read_all(files: Sequence[Path]) -> list[str]:
    """All lines of files or, without any, of standard input."""
    return [line for line in read_lines(files) if line is not None]


def _check(files: Sequence[Path]) -> None:
    for path in files:
        if path != STANDARD_INPUT:
            readable_file(path)


def readable_file(path: Path) -> Path:
    """The same path, of a file or a pipe.

    Raises:
        FileNotFoundError: no such file.
        IsADirectoryError: it is a folder.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path.absolute()} is a folder: give a file")
    if not path.exists():
        raise FileNotFoundError(f"no file {path.absolute()}: check the path and the format")
    return path


def opened_path(name: str) -> str:
    """A path that opens what a name stands for."""
    return "/dev/stdin" if Path(name) == STANDARD_INPUT else name


def check_folders(*files: Path | None) -> None:
    """OSError where a file could not be written, before there is something to write; None: no file."""
    for path in files:
        if path is None:
            continue
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder: give the name of a file to write")
        if not path.parent.is_dir():
            raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} to")
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(f"the folder {path.parent}, to write {path.name} to, is not writable")


def arriving_lines(descriptor: int) -> Iterator[bytes | None]:
    """Lines of a file, a pipe or a terminal; None where none has come for a tenth of a second."""
    rest: list[bytes] = []
    while True:
        # Windows waits for sockets only.
        if os.name == "posix" and not select.select([descriptor], [], [], 0.1)[0]:
            yield None
            select.select([descriptor], [], [])
        chunk = os.read(descriptor, 1 << 16)
        if not chunk:
            break
        *lines, last = chunk.split(b"\n")
        for line in lines:
            yield b"".join([*rest, line])
            rest = []
        rest.append(last)
    if any(rest):
        yield b"".join(rest)
