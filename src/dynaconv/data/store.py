"""Files and folders that are whole, or not there."""

import errno
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# The tokenizers raise exceptions of no class of their own, NumPy such without a number.
_NUMBER, _PART = re.compile(r"\(os error (\d+)\)"), re.compile(r"\d+ requested and \d+ written")


def cache_directory() -> Path:
    """$DYNACONV_CACHE, or dynaconv in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dynaconv"
    return Path(os.environ.get("DYNACONV_CACHE", default))


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Where the disk of a folder is full, an OSError that says so; libraries often do not name the file."""
    try:
        yield
    except Exception as error:
        found = _NUMBER.search(str(error))
        number = int(found[1]) if found else getattr(error, "errno", None)
        if number not in _FULL and not _PART.search(str(error)):
            raise
        raise OSError(f"{folder} cannot be written ({error}): free some disk space") from error


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file in one step: who reads it finds all of it, or what was there before."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    partial.replace(path)


def made_once(parent: Path, key: object, make: Callable[[Path], None]) -> Path:
    """A folder that an earlier call with an equal key made, or that `make` fills now.

    It gets its name when it is complete. Of several processes one works, the others wait.

    Args:
        parent: of the folder.
        key: what the content depends on, as JSON takes it.
        make: called with an empty folder.
    """
    final = parent / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    if final.is_dir():
        return final
    parent.mkdir(parents=True, exist_ok=True)
    with FileLock(parent / f"{final.name}.lock"):
        if not final.is_dir():
            prefix = f"{final.name}.incomplete-"
            for leftover in parent.glob(f"{prefix}*"):  # of killed processes
                shutil.rmtree(leftover)
            staged = parent / f"{prefix}{uuid.uuid4().hex}"
            staged.mkdir()
            try:
                with writing(parent):
                    make(staged)
                    staged.rename(final)
            finally:
                shutil.rmtree(staged, ignore_errors=True)
    return final


def state_of(files: Iterable[Path]) -> list[list]:
    """Path, size and modification time of the files that there are: part of a key.

    Raises:
        ValueError: a pipe, of which nothing says whether it has the same text again.
    """
    there = [path for path in sorted(files) if path.exists() and not path.is_dir()]
    for path in there:
        if not path.is_file():
            raise ValueError(f"{path} is a pipe, which can be read only once: write its text to a file")
    found = [(path.resolve(), path.stat()) for path in there]
    return [[str(path), status.st_size, status.st_mtime_ns] for path, status in found]


def digest(directory: Path) -> str:
    """SHA-256 of the files in a folder and of their names, 64 hexadecimal digits."""
    total = hashlib.sha256()
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        name = path.relative_to(directory).as_posix()
        total.update(name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()
