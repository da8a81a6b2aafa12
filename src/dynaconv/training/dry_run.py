"""`dynaconv train --dry-run`: memory, disk and cost of a run, before anything is spent."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from .estimate import ACCELERATORS, UTILISATION, Estimate, estimate, free_disk
from .recipe import TrainConfig


@dataclass(frozen=True)
class Batches:
    """What the batches of one device are: their mean number of labels, one of them, and the longest one."""

    labels: float
    usual: dict[str, Tensor]
    longest: dict[str, Tensor]
    labels_of_epoch: int | None = None
    """None where the data is not there."""
    repeat: int = 1
    """Each has that many of what is given here, beside each other."""


def print_needs(
    title: str,
    model: nn.Module,
    batches: Batches,
    loss: Callable[[Any, Tensor], Tensor] | None,
    options: TrainConfig,
    run: Path,
    *,
    processes: int,
    data: str,
    unit: str,
    missing: Exception | None,
) -> None:
    """Print what a run needs.

    Args:
        title: of the table.
        model: as in :func:`~dynaconv.training.estimate.estimate`.
        batches: of the run.
        loss: the same.
        options: of the run.
        run: its folder.
        processes: how many devices would train.
        data: what the data is.
        unit: what labels are, such as "target tokens".
        missing: why the data is not there; raised when all that is known is printed.

    Raises:
        ValueError: too little disk or memory, after the table.
    """
    usual, longest = (estimate(model, batch, loss, batches.repeat) for batch in (batches.usual, batches.longest))
    needed, free = (options.kept + options.best + 1) * longest.checkpoint, free_disk(run)
    rows = {"data": data, **_rows(batches, usual, longest, options, processes, unit)}
    rows["disk"] = f"{_gb(needed)} for checkpoints; {_gb(free)} are free"
    table = Table("", "needs", title=title)
    for row in rows.items():
        table.add_row(*row)
    Console().print(table)
    if missing is not None:
        raise missing
    if needed > free:
        raise ValueError(f"{_gb(needed)} of checkpoints do not fit on the disk of {run}, where {_gb(free)} are free")
    least = longest.memory - longest.activations // 2  # with bf16
    if torch.cuda.is_available() and least > (memory := torch.cuda.get_device_properties(0).total_memory):
        raise ValueError(f"training needs at least {_gb(least)}, the GPU has {_gb(memory)}: lower train.max_tokens")


def _rows(
    batches: Batches, usual: Estimate, longest: Estimate, options: TrainConfig, processes: int, unit: str
) -> dict[str, str]:
    batches_per_update = processes * options.accumulation
    tokens = batches.labels * batches_per_update
    flops = usual.flops * batches_per_update * options.max_steps
    hours = {name: flops / (peak * UTILISATION) / 3600 for name, peak in ACCELERATORS.items()}
    epochs = f", {tokens * options.max_steps / batches.labels_of_epoch:.1f} epochs" if batches.labels_of_epoch else ""
    devices = f"{processes} device{'s' if processes > 1 else ''}"
    return {
        "parameters": f"{usual.parameters:,}",
        "update": f"{tokens:,.0f} {unit}: {devices} x {options.accumulation} x up to {options.max_tokens:,}",
        "run": f"{options.max_steps:,} updates, {tokens * options.max_steps:.3g} {unit}{epochs}",
        "compute": f"{flops:.3g} FLOPs, forward and backward",
        "GPU hours": ", ".join(f"{name} {value:.2g}" for name, value in hours.items())
        + f", at {UTILISATION:.0%} of their peak",
        "memory": f"{_gb(longest.memory)} on a device, of which {_gb(longest.activations)} are activations in fp32, "
        "half as much in bf16",
    }


def _gb(count: int) -> str:
    return f"{count / 1e9:.3g} GB"
