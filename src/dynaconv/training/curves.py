"""Learning curves."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib.figure import Figure


def plot_curves(runs: dict[str, list[dict[str, Any]]], path: Path, metrics: Iterable[str] = ()) -> None:
    """Plot the logs of one or several runs over their updates, to a PNG file.

    Args:
        runs: {name: log history of the trainer}.
        path: of the file.
        metrics: names of what the trainer measured beside the loss.
    """
    titles = {"loss": "training loss", "eval_loss": "validation loss (nats per token)"}
    titles |= {f"eval_{name.lower()}": f"validation {name}" for name in metrics}
    panels = [
        (key, title) for key, title in titles.items() if any(key in entry for log in runs.values() for entry in log)
    ]
    figure = Figure(figsize=(5 * max(1, len(panels)), 4), layout="constrained")
    for i, (key, title) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), i + 1)
        for name, log in runs.items():
            points = [(entry["step"], entry[key]) for entry in log if key in entry]
            axes.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 40 else None)
        axes.set(title=title, xlabel="updates")
        axes.grid(alpha=0.3)
        if len(runs) > 1:
            axes.legend()
    figure.savefig(path, dpi=120)
