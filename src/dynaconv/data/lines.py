"""Lines of files or of standard input, as they come."""

import logging
import os
import select
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

logger = logging.getLogger("dynaconv")


def count_lines(files: Sequence[Path]) -> int | None:
    """How many lines there are; None where they can be read only once, from standard input (no files) or a pipe."""
    if not files or not all(path.is_file() for path in files):
        return None
    count = 0
    for path in files:
        with path.open("rb") as stream:
            count += sum(1 for _ in stream)
    return count


def read_lines(files: Sequence[Path]) -> Iterator[str | None]:
    """Lines of files or, without any, of standard input; None where more are to come but not yet.

    Bytes that are not UTF-8 are left out, with a warning.
    """
    if not files and sys.stdin.isatty():
        logger.info("reading standard input, one sentence per line; end with Ctrl-D")
    with ExitStack() as stack:
        sources: list[tuple[str, Iterable[bytes | None]]] = [
            (str(path), stack.enter_context(path.open("rb"))) for path in files
        ]
        for name, stream in sources or [("standard input", arriving_lines(sys.stdin.fileno()))]:
            number = 0
            for raw in stream:
                if raw is None:
                    yield None
                    continue
                number += 1
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8", errors="replace").rstrip("\r\n")
                if "\ufffd" in line and "\ufffd".encode() not in raw:
                    logger.warning("%s, line %d: not valid UTF-8, undecodable bytes are ignored", name, number)
                yield line.replace("\ufffd", "")


def read_all(files: Sequence[Path]) -> list[str]:
    """All lines of files or, without any, of standard input."""
    return [line for line in read_lines(files) if line is not None]


def check_folders(*files: Path | None) -> None:
    """FileNotFoundError where a file could not be written, before there is something to write; None: no file."""
    for path in files:
        if path is not None and not path.parent.is_dir():
            raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} to")


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
