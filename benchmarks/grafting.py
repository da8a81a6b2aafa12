"""What short convolutions add to the time of a training step of a small Llama: forward + backward, no optimizer.

Rounds are interleaved: each runs every model once, on the same tokens. Overheads are medians over rounds of the ratio
to the model without convolutions. The limit is what their minimal memory traffic takes at the speed of a copy: each
convolution reads its input and writes its output, and in the backward pass reads both again as input and gradient and
writes a gradient.

    python benchmarks/grafting.py --output benchmarks/results/grafting_cpu
"""

import argparse
import contextlib
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

import dynaconv
from dynaconv.bench.machine import describe
from dynaconv.nn import DynamicShortConv, ShortConv
from dynaconv.nn.shortconv import Kind

mpl.use("Agg")
from matplotlib import pyplot as plt

BASE = "Llama"
VARIANTS: dict[str, tuple[str, Kind, str]] = {
    "static, QKV": ("qkv", "static", "cpu"),
    "head-wise, QKV": ("qkv", "headwise", "cpu"),
    "low rank, QKV": ("qkv", "lowrank", "cpu"),
    "low rank, all linear": ("all_linear", "lowrank", "cpu"),
    "low rank, QKV, plain PyTorch": ("qkv", "lowrank", "reference"),
    "low rank, all linear, plain PyTorch": ("all_linear", "lowrank", "reference"),
}


def build(vocabulary: int) -> dict[str, Any]:
    """The models by name, all with the parameters of the first."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=2,
        num_attention_heads=8,
        use_cache=False,
    )
    models = {}
    for name in (BASE, *VARIANTS):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        if name != BASE:
            placement, kind, _ = VARIANTS[name]
            dynaconv.graft(model, placement, kind)
        models[name] = model
    return models


def step(name: str, model: Any, ids: torch.Tensor, head: bool) -> None:
    """Forward and backward pass, with or without the output layer."""
    forced = dynaconv.backend(VARIANTS[name][2]) if name in VARIANTS else contextlib.nullcontext()
    with forced:
        loss = model(ids, labels=ids).loss if head else model.model(ids).last_hidden_state.square().mean()
        loss.backward()


def milliseconds(models: dict[str, Any], ids: torch.Tensor, head: bool, rounds: int) -> dict[str, list[float]]:
    """Times of every model in every round."""
    for name, model in models.items():
        step(name, model, ids, head)  # compiles kernels, allocates gradients
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in tqdm(range(rounds), desc="with the output layer" if head else "decoder only"):
        for name, model in models.items():
            started = time.perf_counter()
            step(name, model, ids, head)
            times[name].append(1e3 * (time.perf_counter() - started))
    return times


def traffic(model: Any, ids: torch.Tensor) -> float:
    """Bytes that the convolutions of a step have to move."""
    convs = [module for module in model.modules() if isinstance(module, (ShortConv, DynamicShortConv))]
    return 5 * 4 * ids.numel() * sum(conv.dim for conv in convs)


def bytes_per_ms(rounds: int) -> float:
    """Speed of a copy."""
    x = torch.randn(1 << 24)
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        x.clone()
        times.append(1e3 * (time.perf_counter() - started))
    return 2 * x.nbytes / median(times)


def flops(model: Any, ids: torch.Tensor) -> int:
    """Forward FLOPs of the decoder."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.model(ids)
    return counter.get_total_flops()


def main() -> None:
    """Measure, show and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="path without suffix; writes .json and .png")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    models = build(arguments.vocabulary)
    ids = torch.randint(0, arguments.vocabulary, (arguments.batch, arguments.tokens))
    times = {head: milliseconds(models, ids, head, arguments.rounds) for head in (False, True)}
    speed, base_flops = bytes_per_ms(arguments.rounds), flops(models[BASE], ids)
    rows = []
    for name, model in models.items():
        row: dict[str, Any] = {"model": name, "parameters": model.num_parameters()}
        for head, part in ((False, "decoder"), (True, "whole model")):
            ratios = [one / base for one, base in zip(times[head][name], times[head][BASE], strict=True)]
            row[f"{part} ms"], row[f"{part} overhead %"] = median(times[head][name]), 100 * (median(ratios) - 1)
        row["decoder FLOPs %"] = 100 * (flops(model, ids) / base_flops - 1)
        row["memory limit %"] = 100 * traffic(model, ids) / speed / median(times[False][BASE])
        rows.append(row)
    table = Table(title=f"forward + backward, {arguments.batch} x {arguments.tokens} tokens, fp32")
    for column in rows[0]:
        table.add_column(column, justify="left" if column == "model" else "right")
    for row in rows:
        table.add_row(
            *(value if isinstance(value, str) else f"{value:,.1f}".removesuffix(".0") for value in row.values())
        )
    Console(width=150).print(table)
    settings = {name: value for name, value in vars(arguments).items() if name != "output"}
    result = {"machine": describe(), "settings": settings, "copy GB/s": speed / 1e6, "rows": rows}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    plot(rows[1:], arguments.output.with_suffix(".png"))


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Overheads as bars, with the limit of memory bandwidth."""
    figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
    places = range(len(rows))
    for offset, column in ((-0.2, "decoder overhead %"), (0.2, "whole model overhead %")):
        axes.barh([place + offset for place in places], [row[column] for row in rows], 0.38, label=column)
    limits = [row["memory limit %"] for row in rows]
    axes.plot(limits, list(places), "k|", markersize=18, label="memory limit of the decoder's %")
    axes.set_yticks(list(places), [row["model"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("time of a training step beyond that without convolutions, %")
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
