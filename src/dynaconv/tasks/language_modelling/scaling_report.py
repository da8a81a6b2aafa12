"""`dynaconv scaling`: laws of families of runs, their compute advantage, a plot, and JSON."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from rich.console import Console
from rich.table import Table

mpl.use("Agg")

from matplotlib.figure import Figure
from tqdm import tqdm

from ...training.loading import read_config
from ...training.recipe import read_recipe, recipe_file, task_in
from .scaling import Advantage, Law, Run, check_runs, compute_advantage, fit

INF = "inf"  # JSON has no infinity


def print_scaling(paths: Sequence[Path], *, baseline: str, output: Path) -> None:
    """Fit the law of every family, and show what the others gain over a baseline.

    Writes `scaling.json` and `scaling.png` into `output`.

    Args:
        paths: run folders, or files of JSON lines with `family`, `parameters`, `tokens`, `flops` and `loss`.
        baseline: the family that the others are measured by.
        output: folder.

    Raises:
        ValueError: files that cannot be read so, too few runs or families, or no runs of the baseline.
        FileNotFoundError: no such file.
    """
    families = check_runs([run for path in paths for run in read_runs(path)])
    if baseline not in families:
        raise ValueError(f"--baseline {baseline}: no runs of it; there are {', '.join(families)}")
    if len(families) < 2:
        raise ValueError(f"all runs are of {baseline}: give those of another family too")
    laws = {name: fit(runs) for name, runs in families.items()}
    others = [name for name in families if name != baseline]
    bar = tqdm(others, desc="bootstrap", unit="family")
    advantages = {name: compute_advantage(families[name], families[baseline]) for name in bar}
    output.mkdir(parents=True, exist_ok=True)
    record = {
        "baseline": baseline,
        "fits": {name: asdict(law) for name, law in laws.items()},
        "advantage": {
            name: {key: _number(value) for key, value in asdict(a).items()} for name, a in advantages.items()
        },
    }
    (output / "scaling.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    table = Table(
        "family",
        "runs",
        "E",
        "A",
        "a",
        "B",
        "b",
        f"compute of {baseline} for the same loss",
        title="L = E + A/N^a + B/D^b",
    )
    for name, law in laws.items():
        numbers = [f"{getattr(law, key):.4g}" for key in ("E", "A", "a", "B", "b")]
        gain = "" if name == baseline else _describe(advantages[name])
        table.add_row(name, str(len(families[name])), *numbers, gain)
    Console().print(table)
    plot_scaling(families, laws, output / "scaling.png")
    print(f"plot  {output / 'scaling.png'}\njson  {output / 'scaling.json'}")


def read_runs(path: Path) -> list[Run]:
    """Runs of a file of JSON lines, or the one of a run folder.

    The family of a run folder is its kind of network, such as "attention dense lowrank qkv W4 R16".

    Raises:
        ValueError: not such a file, or the folder of a run that has not finished or is of another task.
        FileNotFoundError: no such file.
    """
    if path.is_dir():
        return [_read_folder(path)]
    if not path.is_file():
        raise FileNotFoundError(f"no file or run folder {path}")
    runs = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if line.strip():
            try:
                content = json.loads(line)
                names = [field.name for field in fields(Run)]
                runs.append(Run(str(content["family"]), *(float(content[name]) for name in names[1:])))
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(
                    f"{path}, line {number}: expected family, parameters, tokens, flops and loss as JSON ({error!r})"
                ) from None
    return runs


def _read_folder(run: Path) -> Run:
    recipe = recipe_file(run)
    content = read_recipe(recipe) if recipe else {}
    if not recipe or task_in(content) != "language_modelling":
        raise ValueError(f"{run} is no run of a language model")
    if content["model"].get("folder"):
        raise ValueError(f"{run} went on from another model, whose training it does not know: leave it out")
    if not (run / "history.json").is_file():
        raise ValueError(f"{run} has not finished: train it to its end, or leave it out")
    last: dict[str, Any] = {}
    for entry in json.loads((run / "history.json").read_text("utf-8")):
        last |= entry
    family = _family(read_config(run).to_dict())
    try:
        tokens = float(last["num_input_tokens_seen"])
        flops = last["flops_per_second"] / last["tokens_per_second"] * tokens
        return Run(family, last["parameters"], tokens, flops, last["eval_loss"])
    except (KeyError, ZeroDivisionError) as error:
        raise ValueError(f"{run}/history.json has no {error}: train it anew, with a log before its end") from None


def _family(config: dict[str, Any]) -> str:
    """What of a configuration is no size: the network, and what convolutions it has where."""
    if config["model_type"] == "dynaconv":
        kind = config["conv"]
        made = {"lowrank": f"R{config['conv_rank']}", "headwise": f"H{config['conv_head_dim']}"}
        where = [] if kind == "none" else [config["placement"], f"W{config['conv_width']}"]
        return " ".join(
            map(str, [config["mixer"], config["ffn"], kind, *where, *([made[kind]] if kind in made else [])])
        )
    convolutions = config.get("dynaconv") or {}
    mixer = [config["decoder_mixer"]] if "decoder_mixer" in config else []
    return " ".join(map(str, [config["model_type"], *mixer, *convolutions.values()]))


def plot_scaling(families: dict[str, list[Run]], laws: dict[str, Law], path: Path) -> None:
    """Losses over compute, and the least loss for each compute by the laws."""
    flops = [run.flops for runs in families.values() for run in runs]
    grid = np.geomspace(min(flops), max(flops), 60)
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for name, runs in families.items():
        points = axes.scatter([run.flops for run in runs], [run.loss for run in runs], s=14)
        best = [laws[name].optimal_loss(value) for value in grid]
        axes.plot(grid, best, color=points.get_facecolor()[0], label=name)
    axes.set(xscale="log", yscale="log", xlabel="training FLOPs", ylabel="held-out loss (nats per token)")
    axes.grid(alpha=0.3, which="both")
    axes.legend(title="best by the law")
    figure.savefig(path, dpi=120)


def _describe(advantage: Advantage) -> str:
    return f"{advantage.value:.2f}x ({advantage.low:.2f} to {advantage.high:.2f})"


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else INF
