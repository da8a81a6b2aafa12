"""The operators beside what people write without them, and beside a plain copy of x, which no operator can beat.

Every round runs every contestant once, forward and forward + backward; the table shows medians. Rounds, and the copies
between them, rotate over several inputs, so that a copy goes through memory and not through a large L3 cache.

    python benchmarks/operators.py --output benchmarks/results/operators_cpu.json
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from machine import describe
from peers import depthwise_conv1d, shift_and_add, unfold_einsum
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import dynaconv

COLUMNS = ("ms", "times ours", "copies", "GB/s", "% of copy")
BUFFERS = 8
BUFFERS_NOTE = f"rounds rotate over {BUFFERS} inputs; copies go from each of them to a target of its own"
FIRST_CALL = """
import sys, time, torch, dynaconv
static = sys.argv[1] == "static"
x = torch.randn(1, 8, 16, requires_grad=True)
f = torch.randn((4, 3) if static else (1, 8, 4, 3), requires_grad=True)
start = time.perf_counter()
y = (dynaconv.static_conv if static else dynaconv.dynamic_conv)(x, f)
forward = time.perf_counter()
y.sum().backward()
print(forward - start, time.perf_counter() - forward)
"""


def contestants(compiled: bool) -> dict[str, dict[str, Callable[..., Any]]]:
    """{operator: {name: function of x and filters}}; the first of each operator is ours."""
    dynamic: dict[str, Callable[..., Any]] = {
        "dynaconv": dynaconv.dynamic_conv,
        "dynaconv, with softmax": partial(dynaconv.dynamic_conv, normalize="softmax"),
        "shift and add": shift_and_add,
        "unfold + einsum": unfold_einsum,
    }
    if compiled:
        dynamic["shift and add, torch.compile"] = torch.compile(shift_and_add)
    return {
        "dynamic_conv": dynamic,
        "static_conv": {
            "dynaconv": dynaconv.static_conv,
            "dynaconv, with softmax": partial(dynaconv.static_conv, normalize="softmax"),
            "F.conv1d, depthwise": depthwise_conv1d,
        },
    }


def seconds(function: Callable[[], Any]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for every contestant."""
    B, T, D, H, W = options.shape
    shapes = {"dynamic_conv": (B, T, H, W), "static_conv": (H, W)}
    inputs = [torch.randn(B, T, D).requires_grad_() for _ in range(BUFFERS)]
    targets = [torch.zeros(B, T, D) for _ in range(BUFFERS)]
    grad = torch.randn(B, T, D)
    field = contestants(options.compile)
    times: dict[tuple[str, str, str], list[float]] = {}
    copies: list[float] = []
    total = (options.rounds + 1) * sum(map(len, field.values()))
    with tqdm(total=total, unit="measurement", file=sys.stderr) as bar:
        for i in range(options.rounds + 1):  # the first round warms up
            x = inputs[i % len(inputs)]
            with torch.no_grad():
                copies += [seconds(partial(b.copy_, a)) for a, b in zip(inputs, targets, strict=True)]
            for operator, functions in field.items():
                leaves = [x, torch.randn(shapes[operator]).requires_grad_()]
                for name, function in functions.items():
                    with torch.no_grad():
                        forward = seconds(lambda f=function, a=leaves: f(*a))
                    both = seconds(lambda f=function, a=leaves: torch.autograd.grad(f(*a), a, grad))
                    times.setdefault((operator, name, "forward"), []).append(forward)
                    times.setdefault((operator, name, "forward + backward"), []).append(both)
                    bar.update()
    copy = median(copies[BUFFERS:])
    rows: list[dict[str, Any]] = [{"operator": "copy of x", "name": "", "pass": "forward", "ms": copy * 1e3}]
    for (operator, name, kind), values in times.items():
        ours = median(times[operator, "dynaconv", kind][1:])
        rows.append(
            {
                "operator": operator, "name": name, "pass": kind, "ms": median(values[1:]) * 1e3,
                "times ours": median(values[1:]) / ours, "copies": median(values[1:]) / copy,
                "first call (s)": values[0],
                "GB/s": minimal_bytes(B * T * D, torch.Size(shapes[operator]).numel(), kind) / median(values[1:]) / 1e9,
            }
        )  # fmt: skip
    rows[0]["GB/s"] = 8 * B * T * D / copy / 1e9
    for row in rows:
        row["% of copy"] = 100 * row["GB/s"] / rows[0]["GB/s"]
    return rows


def minimal_bytes(x: int, filters: int, kind: str) -> int:
    """Bytes that have to move in fp32: inputs read and outputs written once in each pass."""
    forward = 4 * (2 * x + filters)
    return forward if kind == "forward" else forward + 4 * (3 * x + 2 * filters)


def first_calls() -> dict[str, dict[str, float]]:
    """Seconds of the first forward and backward call in a new process, without and with the kernels cached on disk."""
    results = {}
    for operator in ("dynamic", "static"):
        with tempfile.TemporaryDirectory() as cache:
            for state in ("empty cache", "cached"):
                command = [sys.executable, "-c", FIRST_CALL, operator]
                environment = {**os.environ, "NUMBA_CACHE_DIR": cache}
                output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
                forward, backward = map(float, output.split())
                results[f"{operator}_conv, {state}"] = {"forward": forward, "backward": backward}
    return results


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=5, default=(2, 2048, 1024, 16, 31), metavar=tuple("BTDHW"))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="also torch.compile the peers (a minute more)")
    parser.add_argument("--output", type=Path, help="write JSON here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows, calls = measure(options), first_calls()
    console = Console(width=110)
    shape = ", ".join(f"{name} {size}" for name, size in zip("BTDHW", options.shape, strict=True))
    table = Table("operator", "implementation", "pass", title=f"{shape}, fp32, {options.threads} threads")
    for name in COLUMNS:
        table.add_column(name, justify="right")
    for row in rows:
        numbers = [f"{row[key]:.2f}" if key in row else "" for key in COLUMNS]
        table.add_row(row["operator"], row["name"], row["pass"], *numbers)
    console.print(table)
    for name, call in calls.items():
        console.print(f"first call, {name}: forward {call['forward']:.2f} s, backward {call['backward']:.2f} s")
    if options.output:
        settings = {"shape": options.shape, "rounds": options.rounds, "dtype": "float32", "buffers": BUFFERS_NOTE}
        record = {"machine": describe(), "settings": settings, "rows": rows, "first call (s)": calls}
        options.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
