"""`dynaconv recall`: networks with different convolutions learn the same task, side by side."""

import json
import multiprocessing
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

mpl.use("Agg")

from matplotlib.figure import Figure

from ...data.store import write_whole
from .training import Experiment, train_once

PRESETS = {
    "small": Experiment("variable_key", {"pairs": 12}, steps=150, train_size=6000, test_size=500),
    "variable-key": Experiment("variable_key"),
    "variable-key-hard": Experiment("variable_key", {"classes": 4, "pairs": 32}, train_size=32000, steps=2000),
    "mqar": Experiment("mqar", {"length": 64, "pairs": 4}, train_size=20000, layers=2, steps=1500),
    "compositional": Experiment("compositional", {"length": 64, "pairs": 9}, train_size=20000, layers=2, steps=1500),
    "fuzzy": Experiment("fuzzy", train_size=12800, test_size=1280, layers=2, hidden_size=128, batch=128, steps=2000),
}
Results = dict[str, list[dict[str, Any]]]
_done: Any = None  # counts updates; in the processes that train


def recall(
    preset: str, output: Path, *, convolutions: Sequence[str], seeds: int, steps: int | None, workers: int | None,
    device: str | None,
) -> Results:  # fmt: skip
    """Train every network with every seed, where that was not done yet, and show what came of it.

    Writes a file for each run, `results.json` and `recall.png` into `output`.

    Args:
        preset: of :data:`PRESETS`.
        output: folder; runs that are there already are not repeated.
        convolutions: as of :func:`~dynaconv.tasks.recall.training.train_once`.
        seeds: how many; 1, 2, ...
        steps: updates; None: as the preset says.
        workers: processes that train beside each other; None: one on a GPU, or else one for each thread of PyTorch.
        device: None: a GPU if there is one.

    Returns:
        {convolutions: of every seed what :func:`~dynaconv.tasks.recall.training.train_once` returns}.

    Raises:
        ValueError: no such preset, convolutions, no seed, or runs of another experiment in the folder.
    """
    experiment = PRESETS[preset] if steps is None else replace(PRESETS[preset], steps=steps)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    workers = workers or (1 if device != "cpu" else torch.get_num_threads())
    output.mkdir(parents=True, exist_ok=True)
    runs = {(name, seed): output / f"{name}-{seed}.json" for name in convolutions for seed in range(1, seeds + 1)}
    for path in runs.values():
        if path.exists() and json.loads(path.read_text("utf-8"))["experiment"] != asdict(experiment):
            raise ValueError(f"{path} is of another experiment: choose another --output")
    waiting = {key: path for key, path in runs.items() if not path.exists()}
    if waiting:
        _train(experiment, waiting, workers, device)
    results: Results = {name: [] for name in convolutions}
    for (name, _), path in runs.items():
        results[name].append(json.loads(path.read_text("utf-8")))
    record = {"preset": preset, "experiment": asdict(experiment), "results": results}
    (output / "results.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    print_results(preset, results)
    plot_results(preset, results, output / "recall.png")
    print(f"plot  {output / 'recall.png'}\njson  {output / 'results.json'}")
    return results


def print_results(title: str, results: Results) -> None:
    """A row for each kind of convolution: the accuracy at the end, median and range over seeds."""
    table = Table("convolutions", "parameters", "accuracy", "from", "to", "seconds", title=f"recall: {title}")
    lost = []
    for name, runs in results.items():
        final = [run["accuracy"][-1][1] for run in runs if run["diverged"] is None]
        shown = [f"{value:.3f}" for value in (median(final), min(final), max(final))] if final else ["diverged", "", ""]
        lost += [f"{name}, seed {run['seed']}: diverged at update {run['diverged']}" for run in runs if run["diverged"]]
        table.add_row(name, f"{runs[0]['parameters']:,}", *shown, f"{median(run['seconds'] for run in runs):.0f}")
    Console().print(table)
    for line in lost:
        print(line)


def plot_results(title: str, results: Results, path: Path) -> None:
    """The accuracy over the updates: median of the seeds, and their range."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, runs in results.items():
        logs = [run["accuracy"] for run in runs if run["diverged"] is None]
        if logs:
            steps = [step for step, _ in logs[0]]
            values = [[log[i][1] for log in logs] for i in range(len(steps))]
            (line,) = axes.plot(steps, [median(group) for group in values], marker=".", label=name)
            low, high = [min(group) for group in values], [max(group) for group in values]
            axes.fill_between(steps, low, high, alpha=0.2, color=line.get_color())
    axes.set(title=title, xlabel="updates", ylabel="accuracy", ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(title="convolutions")
    figure.savefig(path, dpi=120)


def _train(experiment: Experiment, runs: dict[tuple[str, int], Path], workers: int, device: str) -> None:
    context = multiprocessing.get_context("spawn")
    done = context.Value("q", 0)
    threads = max(1, torch.get_num_threads() // workers)
    with (
        tqdm(total=len(runs) * experiment.steps, unit="update", desc="recall") as bar,
        context.Pool(min(workers, len(runs)), _start, (done, threads)) as pool,  # ends its processes when it is left
    ):
        left = [pool.apply_async(_run, (experiment, key, path, device)) for key, path in runs.items()]
        while left:
            time.sleep(0.5)
            for result in [result for result in left if result.ready()]:
                result.get()
                left.remove(result)
            bar.n = done.value
            bar.set_postfix_str(f"{len(left)} runs left")


def _start(done: Any, threads: int) -> None:
    global _done
    _done = done
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its processes
    torch.set_num_threads(threads)


def _run(experiment: Experiment, key: tuple[str, int], path: Path, device: str) -> None:
    name, seed = key
    started = time.perf_counter()
    result = train_once(experiment, name, seed, device, _count)
    result |= {"seed": seed, "seconds": round(time.perf_counter() - started, 1), "experiment": asdict(experiment)}
    write_whole(path, json.dumps(result, indent=1))


def _count() -> None:
    with _done.get_lock():
        _done.value += 1
