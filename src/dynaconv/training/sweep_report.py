"""What a sweep shows: a table, a plot, curves, and JSON."""

import json
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from .curves import plot_curves
from .sweep import Cell, Sweep, history, read_sweep, results_of, run_cells, settings

Results = list[dict[str, Any]]


def sweep_recipe(
    path: Path, output: Path, *, check: Callable[[dict[str, Any], str], Any], workers: int, overrides: tuple[str, ...]
) -> None:
    """Run a sweep where it stopped, and show what came of it.

    Writes `results.json`, `sweep.png` and `curves.png` into `output`.

    Args:
        path: of the sweep.
        output: its folder.
        check: as of :func:`~dynaconv.training.sweep.read_sweep`.
        workers: runs side by side.
        overrides: "section.key=value" for all runs.

    Raises:
        ValueError: the sweep is not valid, no worker, or a run failed.
        FileNotFoundError: no such file.
    """
    if workers < 1:
        raise ValueError(f"--workers must be 1 or more; got {workers}")
    sweep, cells = read_sweep(path, check, overrides)
    failed = run_cells(cells, output, workers)
    results = results_of(cells, output)
    record = {"title": sweep.title, "recipe": sweep.recipe, "paper": sweep.paper, "results": results}
    (output / "results.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    print_results(sweep, cells, results)
    plot_results(sweep, cells, results, output / "sweep.png")
    finished = {
        run["run"]: history(output / run["run"]) for row in results for run in row["runs"] if "eval_loss" in run
    }
    plot_curves(finished, output / "curves.png")
    if failed:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        raise ValueError(f"{len(failed)} runs failed, and are tried again by the same command: {reasons}")
    print(f"plot    {output / 'sweep.png'}\ncurves  {output / 'curves.png'}\njson    {output / 'results.json'}")


def print_results(sweep: Sweep, cells: list[Cell], results: Results) -> None:
    """A row for each configuration: mean, and range over seeds; runs that diverged are named."""
    names, measures = settings(cells), measures_of(results)
    with_paper = any(row["paper"] is not None for row in results)
    table = Table(
        *(name.rpartition(".")[2].replace("_", " ") for name in names),
        *(name.removeprefix("eval_").replace("loss", "validation loss") for name in measures),
        *([sweep.paper or "paper"] if with_paper else []),
        title=sweep.title or None,
        caption="mean of the seeds, and their range" if len(sweep.seeds) > 1 else None,
    )
    for row in results:
        values = [_text(row["values"].get(name, "")) for name in names]
        shown = [describe(row["runs"], measure) for measure in measures]
        table.add_row(*values, *shown, *(["" if row["paper"] is None else f"{row['paper']:g}"] if with_paper else []))
    Console().print(table)


def plot_results(sweep: Sweep, cells: list[Cell], results: Results, path: Path) -> None:
    """The validation loss of each configuration with its range over seeds, and what the paper has beside it."""
    labels = [cell.name.replace(",", ", ") for cell in cells]
    panels = {"validation loss (nats per token)": [values_of(row["runs"], "eval_loss") for row in results]}
    if any(row["paper"] is not None for row in results):
        panels[sweep.paper or "paper"] = [[] if row["paper"] is None else [row["paper"]] for row in results]
    figure = Figure(figsize=(3 + 4 * len(panels), 1.5 + 0.3 * len(labels)), layout="constrained")
    for i, (title, rows) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), i + 1)
        for y, values in enumerate(rows):
            if values:
                axes.plot([min(values), max(values)], [y, y], color="C0", alpha=0.5)
                axes.plot(mean(values), y, "o", color="C0")
            elif i == 0:
                axes.annotate("no result", (0.5, y), xycoords=("axes fraction", "data"), ha="center", va="center")
        axes.set_yticks(range(len(labels)), labels if i == 0 else [""] * len(labels))
        axes.set(xlabel=title, ylim=(len(labels) - 0.5, -0.5))
        axes.grid(alpha=0.3)
    figure.suptitle(sweep.title)
    figure.savefig(path, dpi=120)


def measures_of(results: Results) -> list[str]:
    """The names of what evaluations measured."""
    return list(dict.fromkeys(key for row in results for run in row["runs"] for key in run if key.startswith("eval_")))


def values_of(runs: Results, measure: str) -> list[float]:
    """Of the seeds that have it."""
    return [run[measure] for run in runs if measure in run]


def describe(runs: Results, measure: str) -> str:
    """Such as "2.314 (2.310 to 2.318)", and "diverged at 340" for seeds that did."""
    values = values_of(runs, measure)
    digits = 3 if measure == "eval_loss" else 2
    parts = [f"{mean(values):.{digits}f}"] if values else []
    if len(values) > 1:
        parts[0] += f" ({min(values):.{digits}f} to {max(values):.{digits}f})"
    lost = [f"diverged at {run['diverged']}" for run in runs if run["diverged"] is not None]
    lost += ["failed" for run in runs if measure not in run and run["diverged"] is None]
    return "; ".join(parts + lost)


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
