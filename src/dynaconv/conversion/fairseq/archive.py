"""The published archives: a checkpoint with its dictionaries and BPE codes in a .tar.gz or .tar.bz2."""

import bz2
import gzip
import re
import shutil
import tarfile
import zlib
from pathlib import Path
from typing import Any

_OPEN = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open}
_CHECKPOINT = re.compile(r"[^.].*\.pt")
_TEXT = re.compile(r"dict\.([^.].*\.)?txt|bpecodes|code")
_LONGEST_TEXT = 1 << 26
_HEADERS = 1 << 20  # bytes of the archive beside the content of its files
# Weights hardly compress, and small archives may be mostly text.
_MOST_TIMES, _MOST_AT_LEAST = 20, 1 << 26


def is_archive(path: Path) -> bool:
    """Whether a file is compressed as the published archives are."""
    with path.open("rb") as file:
        return file.read(2) in _OPEN


def unpack(path: Path, folder: Path) -> Path:
    """Write the checkpoint, the dictionaries and the BPE codes of an archive into a folder, whatever folders it has.

    Returns:
        The checkpoint.

    Raises:
        ValueError: the archive is damaged, has something else than files and folders or paths that lead out of it,
            expands to more than a model could, or has no checkpoint or several.
    """
    with path.open("rb") as file:
        opener = _OPEN[file.read(2)]
    most = max(_MOST_AT_LEAST, _MOST_TIMES * path.stat().st_size)
    try:
        with opener(path, "rb") as decompressed:
            stream: Any = _Limited(decompressed, path)
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                for member in archive:
                    most -= member.size
                    _check(member, most, path)
                    stream.left += member.size if member.isfile() else 0
                    _write(archive, member, folder, path)
            while stream.read(1 << 16):  # to the checksum, which stands at the end
                pass
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise ValueError(f"{path} is no whole .tar.gz or .tar.bz2 archive: {error}") from error
    checkpoints = sorted(folder.glob("*.pt"))
    if len(checkpoints) != 1:
        names = ", ".join(checkpoint.name for checkpoint in checkpoints) or "none"
        raise ValueError(f"{path} must have one checkpoint, a file named *.pt; it has {names}")
    return checkpoints[0]


class _Limited:
    """Reads no more than it may: also what tarfile takes for a header may expand to anything."""

    def __init__(self, file: Any, path: Path):
        self.file, self.path, self.left = file, path, _HEADERS

    def read(self, size: int) -> bytes:
        data = self.file.read(size)
        self.left -= len(data)
        if self.left < 0:
            raise ValueError(f"{self.path} is refused: more than {_HEADERS:,} bytes beside the content of its files")
        return data


def _check(member: tarfile.TarInfo, most: int, path: Path) -> None:
    problem, name = None, Path(member.name).name
    if not (member.isfile() or member.isdir()) or member.issparse():
        problem = "is a link, a device or sparse"
    elif Path(member.name).is_absolute() or ".." in Path(member.name).parts:
        problem = "leads out of the archive"
    elif most < 0 or (_TEXT.fullmatch(name) and member.size > _LONGEST_TEXT):
        problem = (
            f"expands to {member.size:,} bytes, too many for its kind in an archive of {path.stat().st_size:,} bytes"
        )
    if problem is not None:
        raise ValueError(f"{path} is refused: {member.name!r} {problem}")


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path, path: Path) -> None:
    name = Path(member.name).name
    wanted = _CHECKPOINT.fullmatch(name) or _TEXT.fullmatch(name)
    content = archive.extractfile(member) if wanted else None
    if content is None:
        return
    try:
        with (folder / name).open("xb") as file:
            shutil.copyfileobj(content, file)
    except FileExistsError as error:
        raise ValueError(f"{path} is refused: it has two files named {name}") from error
