"""Sweeps: the same recipe with some values changed, run by run, and what came of it."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch
import yaml
from tqdm import tqdm

from .checkpoints import WEIGHTS
from .recipe import check_recipe, read_recipe
from .run import DIVERGED

_STEP = re.compile(rb"step +(\d+)  ")


@dataclass
class Row:
    """Values of a recipe that belong together."""

    set: dict[str, Any]
    """{"section.key": value}."""
    paper: float | None = None
    """What the paper has for it."""


@dataclass
class Sweep:
    """Every combination of the grid, for every row and every seed."""

    recipe: str
    """File, seen from that of the sweep."""
    title: str = ""
    always: dict[str, Any] = field(default_factory=dict)
    """{"section.key": value} that all runs have."""
    grid: dict[str, list[Any]] = field(default_factory=dict)
    """{"section.key": values}: all combinations are run."""
    rows: list[Row] = field(default_factory=list)
    """Values that vary together."""
    seeds: list[int] = field(default_factory=lambda: [1])
    """Of training."""
    paper: str = ""
    """What `paper` of the rows is, such as "perplexity, 300M"."""


@dataclass(frozen=True)
class Cell:
    """A configuration of a sweep: the values that vary, the recipe of each seed, and what the paper has for it."""

    values: dict[str, Any]
    recipes: dict[int, dict[str, Any]]
    paper: float | None

    @property
    def name(self) -> str:
        """Such as "mixer=dynamic,learning_rate=0.003"; also of folders."""
        parts = (f"{key.rpartition('.')[2]}={_brief(value)}" for key, value in self.values.items())
        return ",".join(parts) or "recipe"

    def run(self, output: Path, seed: int) -> Path:
        """The run folder of a seed."""
        return output / f"{self.name},seed={seed}"


def read_sweep(path: Path, overrides: tuple[str, ...] = ()) -> tuple[Sweep, list[Cell]]:
    """A sweep and its configurations.

    Args:
        path: of a YAML file, see :class:`Sweep`.
        overrides: "section.key=value" for all runs, the value in YAML.

    Raises:
        ValueError: not such a file, or configurations that are the same.
        FileNotFoundError: no such file.
    """
    sweep = check_recipe(read_recipe(path), Sweep, str(path))
    content = read_recipe(path.parent / sweep.recipe)
    for name, value in sweep.always.items():
        _put(content, name, value)
    for override in overrides:
        name, found, value = override.partition("=")
        if not found:
            raise ValueError(f"--set takes section.key=value, got {override!r}")
        _put(content, name, yaml.safe_load(value))
    cells = []
    for row in sweep.rows or [Row({})]:
        for combination in product(*sweep.grid.values()):
            values = {**row.set, **dict(zip(sweep.grid, combination, strict=True))}
            recipes = {}
            for seed in sweep.seeds:
                recipes[seed] = json.loads(json.dumps(content))
                for name, value in {**values, "train.seed": seed}.items():
                    _put(recipes[seed], name, value)
            cells.append(Cell(values, recipes, row.paper))
    names = [cell.name for cell in cells]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"{path} has configurations twice: {', '.join(sorted(repeated))}")
    return sweep, cells


def run_cells(cells: list[Cell], output: Path, workers: int) -> None:
    """Train what has not been trained yet, several runs side by side, each in a process of its own.

    A run that was interrupted goes on from its last checkpoint; one that diverged has ended. On GPUs, workers take
    turns in them; on a CPU they share its threads.

    Args:
        cells: of :func:`read_sweep`.
        output: a folder with a run folder, a recipe and a log for each of them.
        workers: runs side by side.

    Raises:
        ValueError: a run failed; the message is its last line. The others are ended, and go on the next time.
    """
    output.mkdir(parents=True, exist_ok=True)
    waiting = [(cell.run(output, seed), recipe) for cell in cells for seed, recipe in cell.recipes.items()]
    steps = {run: recipe["train"]["max_steps"] for run, recipe in waiting}
    waiting = [(run, recipe) for run, recipe in waiting if not is_finished(run)]
    running: dict[Path, tuple[int, subprocess.Popen]] = {}
    with ExitStack() as stack, tqdm(total=sum(steps.values()), unit="update", desc=output.name) as bar:
        bar.initial = sum(count if is_finished(run) else _step(run) for run, count in steps.items())
        stack.callback(lambda: [process.terminate() for _, process in running.values()])
        while waiting or running:
            while waiting and len(running) < workers:
                run, recipe = waiting.pop(0)
                slot = min(set(range(workers)) - {slot for slot, _ in running.values()})
                running[run] = slot, _start(run, recipe, slot, workers)
            time.sleep(1)
            for run, (_, process) in list(running.items()):
                if process.poll() is not None:
                    del running[run]
                    if not is_finished(run):
                        raise ValueError(f"{run.name} failed: {_last_line(_log(run))}; see {_log(run)}")
            bar.n = sum(count if is_finished(run) else _step(run) for run, count in steps.items())
            bar.set_postfix_str(f"{len(waiting) + len(running)} runs left")
    bar.close()


def is_finished(run: Path) -> bool:
    """A run has its model, or has diverged."""
    return (run / WEIGHTS).exists() or (run / DIVERGED).exists()


def results_of(cells: list[Cell], output: Path) -> list[dict[str, Any]]:
    """What came of each configuration.

    Returns:
        for each: `values`, `paper`, and `runs`: of each seed its `seed`, `run` (folder), the last value of everything
        that its evaluations logged (`eval_loss`, ...), and `diverged`, the update of that, or None.
    """
    found = []
    for cell in cells:
        runs = []
        for seed in cell.recipes:
            run = cell.run(output, seed)
            diverged = json.loads((run / DIVERGED).read_text("utf-8"))["step"] if (run / DIVERGED).exists() else None
            last = {} if diverged else {key: value for entry in history(run) for key, value in entry.items()}
            measured = {key: value for key, value in last.items() if key.startswith("eval_")}
            runs.append({"seed": seed, "run": run.name, **measured, "diverged": diverged})
        found.append({"values": cell.values, "paper": cell.paper, "runs": runs})
    return found


def history(run: Path) -> list[dict[str, Any]]:
    """The log of a finished run."""
    return json.loads((run / "history.json").read_text("utf-8"))


def _start(run: Path, recipe: dict[str, Any], slot: int, workers: int) -> subprocess.Popen:
    path = run.with_name(f"{run.name}.yaml")
    path.write_text(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True), encoding="utf-8")
    environment = dict(os.environ)
    if gpus := torch.cuda.device_count():
        environment["CUDA_VISIBLE_DEVICES"] = str(slot % gpus)
    else:
        environment["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // workers))
    command = [sys.executable, "-m", "dynaconv", "train", str(path), "--output", str(run), "--resume"]
    with _log(run).open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment)  # noqa: S603


def _log(run: Path) -> Path:
    return run.with_name(f"{run.name}.log")


def _step(run: Path) -> int:
    found = _STEP.findall(_log(run).read_bytes()) if _log(run).exists() else []
    return int(found[-1]) if found else 0


def _last_line(path: Path) -> str:
    return (path.read_text("utf-8", errors="replace").split("\n") or [""])[-2:][0].rpartition("\r")[2]


def _brief(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return re.sub(r"[^\w.+-]+", "-", text).strip("-")


def _put(content: dict[str, Any], name: str, value: Any) -> None:
    *sections, key = name.split(".")
    for section in sections:
        content = content.setdefault(section, {})
        if not isinstance(content, dict):
            raise ValueError(f"{name}: {section} is no section of a recipe")
    content[key] = value


def settings(cells: list[Cell]) -> Iterator[str]:
    """The names of what varies."""
    yield from dict.fromkeys(name for cell in cells for name in cell.values)
