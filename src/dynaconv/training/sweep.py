"""Sweeps: the same recipe with some values changed, run by run, and what came of it."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout
from tqdm import tqdm

from .checkpoints import WEIGHTS
from .recipe import check_recipe, read_recipe, save_recipe
from .run import DIVERGED, check_run

_STEP = re.compile(rb"step +(\d+)  ")
_SEED = "train.seed"
_TAIL = 1 << 16  # bytes of a log that are read every second: hundreds of updates of its progress bar
_LONGEST = 120  # characters of a name; those of files may have 255 bytes


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

    name: str
    """Such as "mixer=dynamic,learning_rate=0.003"; also of folders."""
    values: dict[str, Any]
    recipes: dict[int, Any]
    paper: float | None

    def run(self, output: Path, seed: int) -> Path:
        """The run folder of a seed."""
        return output / f"{self.name},seed={seed}"


def read_sweep(
    path: Path, check: Callable[[dict[str, Any], str], Any], overrides: tuple[str, ...] = ()
) -> tuple[Sweep, list[Cell]]:
    """A sweep and its configurations, all of which are checked.

    Args:
        path: of a YAML file, see :class:`Sweep`.
        check: sections and a name, for errors, to the recipe of a task.
        overrides: "section.key=value" for all runs, the value in YAML.

    Raises:
        ValueError: not such a file, configurations that are the same, or that are not valid.
        FileNotFoundError: no such file.
    """
    given = read_recipe(path)
    if "recipe" not in given:
        raise ValueError(f"{path} names no recipe to sweep over: it needs `recipe: FILE.yaml`, beside a grid or rows")
    sweep = check_recipe(given, Sweep, str(path))
    content = read_recipe(path.parent / sweep.recipe)
    given = dict(sweep.always)
    for override in overrides:
        name, found, value = override.partition("=")
        if not found:
            raise ValueError(f"--set takes section.key=value, got {override!r}")
        given[name] = yaml.safe_load(value)
    rows = sweep.rows or [Row({})]
    if _SEED in {*given, *sweep.grid, *(name for row in rows for name in row.set)}:
        raise ValueError(f"{path}: {_SEED} is what seeds says: give them there")
    if not sweep.seeds or not all(sweep.grid.values()):
        raise ValueError(f"{path}: seeds and the values of the grid must not be empty")
    combinations = [
        (row, {**row.set, **dict(zip(sweep.grid, values, strict=True))})
        for row in rows
        for values in product(*sweep.grid.values())
    ]
    short = _short_names({name for _, values in combinations for name in values})
    cells = []
    for row, values in combinations:
        name = ",".join(f"{short[key]}={_brief(value)}" for key, value in values.items()) or "recipe"
        if len(name) > _LONGEST:
            name = f"{name[:_LONGEST]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        recipes = {}
        for seed in sweep.seeds:
            changed = json.loads(json.dumps(content))
            for key, value in {**given, **values, _SEED: seed}.items():
                _put(changed, key, value)
            recipes[seed] = check(changed, f"{path}, {name}")
        cells.append(Cell(name, values, recipes, row.paper))
    names = [cell.name for cell in cells]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"{path} has configurations twice: {', '.join(sorted(repeated))}")
    return sweep, cells


def run_cells(cells: list[Cell], output: Path, workers: int) -> dict[str, str]:
    """Train what has not been trained yet, several runs side by side, each in a process of its own.

    A run that was interrupted goes on from its last checkpoint; one that diverged has ended. After one that failed
    the others are trained, unless nothing has been trained so far. On GPUs, workers take turns in them; on a CPU they
    share its threads.

    Args:
        cells: of :func:`read_sweep`.
        output: a folder with a run folder, a recipe and a log for each of them.
        workers: runs side by side.

    Returns:
        {run that failed: why}; the next time they are tried again.

    Raises:
        ValueError: a run in the folder has another recipe, or another process works there.
    """
    output.mkdir(parents=True, exist_ok=True)
    waiting = [(cell.run(output, seed), recipe) for cell in cells for seed, recipe in cell.recipes.items()]
    steps = {run: recipe.train.max_steps for run, recipe in waiting}
    for run, recipe in waiting:
        check_run(run, recipe, resume=True, same=True)  # one of another recipe must not stand for it
    waiting = [(run, recipe) for run, recipe in waiting if not is_finished(run)]
    running: dict[Path, tuple[int, subprocess.Popen]] = {}
    failed: dict[str, str] = {}
    with ExitStack() as stack, tqdm(total=sum(steps.values()), unit="update", desc=output.name) as bar:
        try:
            stack.enter_context(FileLock(output / ".lock", timeout=0))
        except Timeout:
            raise ValueError(f"another process works in {output}: wait for it, or end it") from None
        bar.initial = sum(count if is_finished(run) else _step(run) for run, count in steps.items())
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, which ends the runs
        stack.callback(signal.signal, signal.SIGTERM, before)
        stack.callback(_end, running)
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
                        failed[run.name] = f"{_last_line(_log(run))} (exit code {process.returncode}; see {_log(run)})"
            if failed and not any(map(is_finished, steps)):
                return failed
            bar.n = sum(count if is_finished(run) else _step(run) for run, count in steps.items())
            bar.set_postfix_str(f"{len(waiting) + len(running)} runs left")
    return failed


def is_finished(run: Path) -> bool:
    """A run has its model, or has diverged."""
    return (run / WEIGHTS).exists() or (run / DIVERGED).exists()


def results_of(cells: list[Cell], output: Path) -> list[dict[str, Any]]:
    """What came of each configuration.

    Returns:
        for each: `values`, `paper`, and `runs`: of each seed its `seed`, `run` (folder), the last value of everything
        that its evaluations logged (`eval_loss`, ...; nothing where it failed), and `diverged`, the update of that, or
        None.
    """
    found = []
    for cell in cells:
        runs = []
        for seed in cell.recipes:
            run = cell.run(output, seed)
            diverged = json.loads((run / DIVERGED).read_text("utf-8"))["step"] if (run / DIVERGED).exists() else None
            log = [] if diverged is not None or not is_finished(run) else history(run)
            last = {key: value for entry in log for key, value in entry.items()}
            measured = {key: value for key, value in last.items() if key.startswith("eval_")}
            runs.append({"seed": seed, "run": run.name, **measured, "diverged": diverged})
        found.append({"values": cell.values, "paper": cell.paper, "runs": runs})
    return found


def history(run: Path) -> list[dict[str, Any]]:
    """The log of a finished run."""
    return json.loads((run / "history.json").read_text("utf-8"))


def _end(running: dict[Path, tuple[int, subprocess.Popen]]) -> None:
    for _, process in running.values():
        process.terminate()
    for _, process in running.values():
        process.wait()


def _start(run: Path, recipe: Any, slot: int, workers: int) -> subprocess.Popen:
    path = run.with_name(f"{run.name}.yaml")
    save_recipe(recipe, path)
    environment = dict(os.environ)
    if gpus := torch.cuda.device_count():
        visible = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
        environment["CUDA_VISIBLE_DEVICES"] = visible[slot % gpus] if visible != [""] else str(slot % gpus)
    else:
        environment["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // workers))
    command = [sys.executable, "-m", "dynaconv", "train", str(path), "--output", str(run), "--resume"]
    with _log(run).open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment)  # noqa: S603


def _log(run: Path) -> Path:
    return run.with_name(f"{run.name}.log")


def _step(run: Path) -> int:
    if not _log(run).exists():
        return 0
    with _log(run).open("rb") as log:
        log.seek(max(0, _log(run).stat().st_size - _TAIL))
        found = _STEP.findall(log.read())
    return int(found[-1]) if found else 0


def _last_line(path: Path) -> str:
    lines = [line for line in path.read_text("utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no message"


def _short_names(names: set[str]) -> dict[str, str]:
    """Of each name as many of its last parts as tell it from the others."""
    short = {}
    for name in names:
        parts = name.split(".")
        tails = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
        short[name] = next(
            (tail for tail in tails if sum(f".{other}".endswith(f".{tail}") for other in names) == 1), name
        )
    return short


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


def settings(cells: list[Cell]) -> list[str]:
    """The names of what varies."""
    return list(dict.fromkeys(name for cell in cells for name in cell.values))
