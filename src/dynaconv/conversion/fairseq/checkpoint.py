"""Checkpoint files of fairseq, read without fairseq, and without running or allocating what a hostile one asks for."""

import argparse
import io
import pickletools
import re
import zipfile
from collections import deque
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor

_METERS = ("AverageMeter", "StopwatchMeter", "TimeMeter")
_STORAGES = ("BFloat16", "Bool", "Byte", "Char", "Double", "Float", "Half", "Int", "Long", "Short")
_ALLOWED = {
    "argparse Namespace",
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    *(f"torch {kind}Storage" for kind in _STORAGES),
    *(f"fairseq.meters {name}" for name in _METERS),
}
_LEGACY_PICKLES = 5  # before the tensors: magic number, version, machine, content, keys of the tensors
_LONGEST_PICKLE = 1 << 22  # bytes beside the tensors, of which a large model with its optimizer has a tenth
# Source, target and output embeddings may be one tensor that is stored once.
_MOST_SHARED = 3


class Checkpoint(NamedTuple):
    """What is needed of a checkpoint."""

    flags: dict[str, Any]
    """Options of its training by name, as they were in the file."""
    weights: dict[str, Tensor]
    """By fairseq's names; in all no larger than the file allows."""


class _Meter:
    """Stands for a meter of fairseq, of which nothing is needed."""

    def __setstate__(self, state: object) -> None:
        pass


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint of fairseq 0.6.1 to main, in torch's zip format (mapped, not read) or its older one.

    Args:
        path: a file of torch.save: {"args" or "cfg": {"model"}: Namespace, "model": {name: tensor}, ...}.

    Raises:
        ValueError: the file is damaged, claims more than it has, names anything else than tensors, containers,
            Namespace and meters, or is no checkpoint of fairseq.
    """
    size = path.stat().st_size
    try:
        zipped = _check_file(path)
        with torch.serialization.safe_globals(
            [argparse.Namespace, *((_Meter, f"fairseq.meters.{name}") for name in _METERS)]
        ):
            content = torch.load(path, map_location=_Budget(size), mmap=zipped, weights_only=True)
    except _RefusedError as error:
        raise ValueError(f"{path} is refused: {error}") from None
    except Exception as error:  # a damaged pickle can raise anything
        # PyTorch's own message advises to load it without precautions, before this.
        reason = str(error).rpartition("WeightsUnpickler error: ")[2].strip().split("\n", 1)[0]
        raise ValueError(
            f"{path} is no whole checkpoint of PyTorch: {_beginning(path) or f'{type(error).__name__}: {reason}'}"
        ) from error
    flags, weights = _flags(content), content.get("model") if isinstance(content, dict) else None
    if flags is None or not isinstance(weights, dict) or not all(map(_is_weight, weights.items())):
        raise ValueError(
            f'{path} is no checkpoint of fairseq: it must have "model" with tensors by name, and a Namespace of '
            'options as "args" or as "model" of "cfg"'
        )
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    if claimed > _MOST_SHARED * size:
        raise ValueError(f"{path} is refused: its tensors claim {claimed:,} bytes in a file of {size:,} bytes")
    return Checkpoint(flags, weights)


class _RefusedError(Exception):
    """The file asks for what a checkpoint does not need."""


class _Budget:
    """Called by torch for every storage that a file claims, before it is filled."""

    def __init__(self, size: int):
        self.size = self.left = size

    def __call__(self, storage: Any, location: str) -> Any:
        self.left -= storage.nbytes()
        if self.left < 0:
            raise _RefusedError(
                f"its tensors claim more than the {self.size:,} bytes of the file, which may be cut off"
            )
        return storage


def _check_file(path: Path) -> bool:
    """Whether it is in the zip format; refuses what need not be in a checkpoint before anything is made of it."""
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
        file.seek(0)
        if not zipped:
            _check_names(file, _LEGACY_PICKLES)
            return False
        with zipfile.ZipFile(file) as members:
            for member in members.infolist():
                if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
                    raise _RefusedError(f"{member.filename[:100]!r} in it is compressed, which PyTorch never does")
            claimed, size = sum(member.file_size for member in members.infolist()), path.stat().st_size
            if claimed > size:
                raise _RefusedError(f"its members claim {claimed:,} bytes in a file of {size:,}")
            if (damaged := members.testzip()) is not None:
                raise ValueError(f"the checksum of {damaged[:100]!r} in it is wrong")
            pickles = [member for member in members.infolist() if member.filename.lower().endswith(".pkl")]
            if len(pickles) != 1:
                raise _RefusedError(f"it must have one data.pkl; it has {len(pickles)} of such a name")
            with members.open(pickles[0]) as content:
                _check_names(content, 1)
    return True


def _beginning(path: Path) -> str | None:
    """What is wrong with the first bytes of a file; None: they could be those of a checkpoint."""
    with path.open("rb") as file:
        head = file.read(16)
    if not head:
        return "it is empty"
    if head.startswith(b"PK\x03\x04"):
        return "it is cut off or damaged" if not zipfile.is_zipfile(path) else None
    return None if head.startswith(b"\x80") else f"it begins with {head!r}"


def _check_names(file: IO[bytes], pickles: int) -> None:
    """Refuse pickles that are longer than a checkpoint's, or name a class or a function which it does not need."""
    content = file.read(_LONGEST_PICKLE)
    stream = io.BytesIO(content)
    texts: deque[str] = deque(maxlen=2)  # what STACK_GLOBAL puts together
    try:
        for _ in range(pickles):
            for opcode, argument, _ in pickletools.genops(stream):
                name = " ".join(texts) if opcode.name == "STACK_GLOBAL" else argument
                if opcode.name in ("GLOBAL", "INST", "STACK_GLOBAL") and name not in _ALLOWED:
                    shown = str(name).replace(" ", ".").encode("unicode_escape").decode()[:100]
                    raise _RefusedError(f"it names {shown}, which no checkpoint needs; nothing was run")
                if isinstance(argument, str):
                    texts.append(argument)
    except ValueError as error:
        if len(content) < _LONGEST_PICKLE:
            raise
        raise _RefusedError(f"it has more than {_LONGEST_PICKLE:,} bytes beside its tensors") from error


def _flags(content: Any) -> dict[str, Any] | None:
    """The options of a checkpoint, whichever version wrote it."""
    if not isinstance(content, dict):
        return None
    cfg = content.get("cfg")
    found = cfg.get("model") if isinstance(cfg, dict) else content.get("args")
    if not isinstance(found, argparse.Namespace):
        return None
    # Languages that fairseq took from the names of the data are options of the task only.
    task = cfg.get("task") if isinstance(cfg, dict) else None
    given = {name: value for name, value in vars(found).items() if value is not None}
    return {**task, **given} if isinstance(task, dict) else given


def _is_weight(item: tuple[object, object]) -> bool:
    name, tensor = item
    named = isinstance(name, str) and re.fullmatch(r"[\w.]{1,200}", name) is not None
    return named and isinstance(tensor, Tensor) and tensor.dim() > 0
