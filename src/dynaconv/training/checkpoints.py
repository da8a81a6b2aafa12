"""Checkpoints that are whole or not there, and their average; models to use."""

import contextlib
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from ..data.store import write_whole

logger = logging.getLogger("dynaconv")

WEIGHTS = "model.safetensors"
_LONGEST = 500  # characters of what a library says of a damaged file
_NAME = re.compile(r"checkpoint-(\d+)")


def checkpoints(directory: Path) -> list[Path]:
    """The checkpoints of a run, oldest first. A folder has this name only once it is complete."""
    found = [(int(match[1]), path) for path in directory.glob("checkpoint-*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


@contextlib.contextmanager
def loading(path: Path) -> Iterator[torch.device]:
    """ValueError where what is loaded inside the block is damaged; gives the device to use, a GPU if there is one."""
    try:
        yield torch.device("cuda" if torch.cuda.is_available() else "cpu")
    except (OSError, MemoryError, ImportError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a file that is not what it should be makes libraries raise anything
        said = " ".join(f"{'' if isinstance(error, ValueError) else f'{type(error).__name__}: '}{error}".split())
        shown = said if len(said) <= _LONGEST else f"{said[:_LONGEST]}..."
        raise ValueError(f"the model in {path} cannot be loaded, a file of it may be damaged: {shown}") from error


def step_of(checkpoint: Path) -> int:
    """The number of updates behind a checkpoint."""
    match = _NAME.fullmatch(checkpoint.name)
    if match is None:
        raise ValueError(f"{checkpoint} is not named checkpoint-STEP")
    return int(match[1])


def damage(checkpoint: Path, processes: int) -> str | None:
    """What keeps so many processes from going on from a checkpoint: a file that is missing or cut off."""
    states = ["rng_state.pth"] if processes == 1 else [f"rng_state_{rank}.pth" for rank in range(processes)]
    for name in (WEIGHTS, "optimizer.pt", "scheduler.pt", "trainer_state.json", *states):
        path = checkpoint / name
        if not path.is_file():
            return f"it has no {name}"
        try:
            if path.suffix == ".json":
                json.loads(path.read_text("utf-8"))
            elif name == WEIGHTS:
                with safe_open(path, "pt"):
                    continue
            elif not is_zipfile(path):
                return f"{name} is damaged"
        except (ValueError, SafetensorError):
            return f"{name} is damaged"
    return None


def last_whole(directory: Path, processes: int) -> Path | None:
    """The last checkpoint of a run from which it can go on; None: it has no checkpoints. Damaged ones are logged.

    Raises:
        ValueError: there are checkpoints, and all are damaged.
    """
    found = checkpoints(directory)
    for path in reversed(found):
        if (fault := damage(path, processes)) is None:
            return path
        logger.warning("%s cannot be gone on from: %s", path, fault)
    if found:
        raise ValueError(f"no checkpoint in {directory} can be gone on from: use another --output, and begin anew")
    return None


def publish(staged: Path, final: Path) -> None:
    """Give a written checkpoint its name in one step, after everything in it has reached the disk."""
    for path in [*staged.rglob("*"), staged]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    if final.exists():
        shutil.rmtree(final)
    staged.rename(final)


def history_of(checkpoint: Path) -> list[dict[str, Any]]:
    """The log of the Trainer up to a checkpoint."""
    return json.loads((checkpoint / "trainer_state.json").read_text("utf-8"))["log_history"]


def losses_of(log: list[dict[str, Any]]) -> dict[int, float]:
    """{step: validation loss, NaN as infinite} of a log of the Trainer."""
    found = {entry["step"]: entry["eval_loss"] for entry in log if "eval_loss" in entry}
    return {step: math.inf if math.isnan(loss) else loss for step, loss in found.items()}


def best_of(found: list[Path], log: list[dict[str, Any]]) -> Path | None:
    """Of some checkpoints that with the lowest validation loss, the earliest of equal ones; None: none has one."""
    losses = losses_of(log)
    return min((path for path in found if step_of(path) in losses), key=lambda p: losses[step_of(p)], default=None)


def keep_last(directory: Path, count: int, also: Path | None = None) -> None:
    """Delete all but the last `count` checkpoints and one more, and what a kill left of earlier deletions."""
    for leftover in directory.glob("deleting-checkpoint-*"):
        shutil.rmtree(leftover)
    for path in checkpoints(directory)[:-count]:
        if path == also:
            continue
        # A name of its own first: a folder that is half deleted must not count as a checkpoint.
        doomed = path.with_name(f"deleting-{path.name}")
        path.rename(doomed)
        shutil.rmtree(doomed)


def average_weights(paths: list[Path]) -> dict[str, Tensor]:
    """The mean of the weights of some checkpoints, summed in fp32, in the dtype of the last."""
    last = load_file(paths[-1] / WEIGHTS)
    total = {name: tensor.float() for name, tensor in last.items()}
    for path in paths[:-1]:
        for name, tensor in load_file(path / WEIGHTS).items():
            total[name] += tensor.float()
    return {name: (total[name] / len(paths)).to(tensor.dtype) for name, tensor in last.items()}


def save_averaged(paths: list[Path], destination: Path) -> None:
    """Write the average of some checkpoints to a safetensors file, in one step."""
    write_whole(destination, save(average_weights(paths), metadata={"format": "pt"}))  # save_file would make it private
