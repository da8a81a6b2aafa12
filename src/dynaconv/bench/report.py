"""Results as tables and as a plot."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from .contestants import COPY, OURS
from .measure import PASSES

Rows = Sequence[dict[str, Any]]

_COLUMNS: dict[str, tuple[str, str]] = {
    "ms": ("ms", ".3f"),
    "min_ms": ("min", ".3f"),
    "spread_percent": ("spread %", ".0f"),
    "times_ours": ("x ours", ".2f"),
    "times_copy": ("x copy", ".1f"),
    "bytes": ("MB moved", ".1f"),
    "gb_per_s": ("GB/s", ".1f"),
    "percent_of_copy": ("% of copy", ".0f"),
    "peak_mb": ("peak MB", ".1f"),
    "peak_over_results": ("x results", ".2f"),
}
# Of every other table: its title, its rows in the record, and its columns {title: (key, format)}.
_OTHERS: tuple[tuple[str, str, dict[str, tuple[str, str]]], ...] = (
    (
        "Threads",
        "thread_scaling",
        {"problem": ("problem", ""), "pass": ("pass", ""), "ms, 1 thread": ("ms_1", ".3f"),
         "ms, all threads": ("ms_all", ".3f"), "speedup": ("speedup", ".2f")},
    ),
    (
        "bf16 beside fp32",
        "bf16",
        {"problem": ("problem", ""), "pass": ("pass", ""), "ms, fp32": ("ms_fp32", ".3f"),
         "ms, bf16": ("ms_bf16", ".3f"), "bf16 / fp32": ("ratio", ".2f")},
    ),
    (
        "Few tokens, a batch of one: the fastest call",
        "few_tokens",
        {"problem": ("problem", ""), "tokens": ("tokens", ""), "pass": ("pass", ""), "contestant": ("contestant", ""),
         "us": ("us", ".1f"), "x ours": ("times_ours", ".2f")},
    ),
    (
        "generate() of a Llama of 8 layers, width 512, ms a token",
        "generation",
        {"batch": ("batch", ""), "plain": ("plain_ms", ".2f"), "low rank on q, k, v": ("grafted_ms", ".2f"),
         "ratio": ("ratio", ".2f")},
    ),
    (
        "First call in a process, milliseconds",
        "first_calls",
        {"operator": ("operator", ""), "cache on disk": ("cache", ""), "forward": ("forward_ms", ".1f"),
         "backward": ("backward_ms", ".1f")},
    ),
)  # fmt: skip
_NOTES = """\
ms: median over the rounds; spread: distance between the quartiles over the median. MB moved: inputs read and outputs
written once in each pass; GB/s: that over ms; % of copy: GB/s over those of a copy of x. peak MB: the most memory
held during the call beyond the inputs; x results: that over the output (and the gradients)."""


def print_tables(record: dict[str, Any]) -> None:
    """A table for every problem of a record of :func:`.suite.bench`, then those of what else was measured."""
    console = Console(width=132)
    for problem, own in _grouped(record["rows"], "problem").items():
        table = Table(title=problem, box=SIMPLE_HEAD, title_justify="left", title_style="bold")
        table.add_column("", no_wrap=True)
        for title, _ in _COLUMNS.values():
            table.add_column(title, justify="right", no_wrap=True)
        for name, group in _grouped(own, "pass").items():
            table.add_row(name, style="italic")
            for row in group:
                style = "bold green" if row["contestant"] == OURS else None
                table.add_row(f"  {row['contestant']}", *map(_format(row), _COLUMNS), style=style)
        console.print(table)
    console.print(_NOTES, style="dim", highlight=False)
    for title, key, columns in _OTHERS:
        if record[key]:
            table = Table(*columns, title=title, box=SIMPLE_HEAD, title_justify="left")
            for row in record[key]:
                table.add_row(*(format(row[name], kind) for name, kind in columns.values()))
            console.print(table)


def plot(rows: Rows, path: Path) -> None:
    """Times relative to a copy of x as grouped bars, a panel for each pass, to a PNG file."""
    contestants = [name for name in _grouped(rows, "contestant") if name != COPY]
    problems = list(_grouped(rows, "problem"))
    figure = Figure(figsize=(2 + 2.2 * len(problems), 8), layout="constrained")
    width = 0.8 / len(contestants)
    for i, name in enumerate(PASSES):
        axes = figure.add_subplot(len(PASSES), 1, i + 1)
        for j, contestant in enumerate(contestants):
            bars = [row for row in rows if row["contestant"] == contestant and row["pass"] == name]
            places = [problems.index(row["problem"]) + (j + 0.5) * width - 0.4 for row in bars]
            drawn = axes.bar(places, [row["times_copy"] for row in bars], width, label=contestant)
            axes.bar_label(drawn, fmt="%.1f", fontsize=7)
        axes.axhline(1, color="black", linewidth=1)
        axes.set(title=name, ylabel="time / time of a copy of x", yscale="log")
        axes.set_xticks(range(len(problems)), [problem.replace(", ", "\n", 1) for problem in problems])
        axes.grid(axis="y", alpha=0.3)
        axes.margins(y=0.15)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(contestants))
    figure.savefig(path, dpi=120)


def _grouped(rows: Rows, key: str) -> dict[str, list[dict[str, Any]]]:
    """{value: its rows}, in the order in which values come up."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return groups


def _format(row: dict[str, Any]) -> Callable[[str], str]:
    return lambda key: format(row[key] / 1e6 if key == "bytes" else row[key], _COLUMNS[key][1])
