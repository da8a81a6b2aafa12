"""The operators beside the reference, eager and under torch.compile, over sizes from one token to B 8, T 2048, D 1024.

The fastest of a few interleaved rounds, in each of which every contestant runs for a fiftieth of a second. The table
shows where ours is slower than the faster of the two; the JSON has everything.

    python benchmarks/sweep.py --output benchmarks/results/sweep_cpu.json
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from dynaconv.bench.contestants import COMPILED, OURS, REFERENCE, Problem, contestants, problems
from dynaconv.bench.machine import describe

SHAPES = tuple(product((1, 8), (1, 2, 16, 128, 2048), (64, 1024)))
SECONDS = 0.02  # of a contestant in a round
NOISE = 1.05


def passes(problem: Problem, shape: tuple[int, int, int]) -> Iterator[tuple[str, dict[str, Callable[[], Any]]]]:
    """What is timed for a problem: forwards, and for 16 and more tokens both ways."""
    field = {
        name: run for name, run in contestants(problem, compiled=True).items() if name in (OURS, REFERENCE, COMPILED)
    }
    inputs = problem.inputs(shape, torch.float32, "cpu")
    plain, grad = [tensor.detach() for tensor in inputs], torch.randn(shape)
    yield "forward", {name: lambda run=run: run(*plain) for name, run in field.items()}
    if shape[1] >= 16:
        yield (
            "forward + backward",
            {name: lambda run=run: torch.autograd.grad(run(*inputs), inputs, grad) for name, run in field.items()},
        )


def microseconds(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """The fastest call of each, after two that compile and warm up."""
    counts, best = {}, dict.fromkeys(runs, float("inf"))
    for name, run in runs.items():
        run()
        run()
        started = time.perf_counter()
        run()
        counts[name] = max(1, int(SECONDS / (time.perf_counter() - started)))
    for _ in range(rounds):
        for name, run in runs.items():
            started = time.perf_counter()
            for _ in range(counts[name]):
                run()
            best[name] = min(best[name], (time.perf_counter() - started) / counts[name] * 1e6)
    return best


def main() -> None:
    """Time all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(2)
    rows: list[dict[str, Any]] = []
    for shape in tqdm(SHAPES, unit="shape"):
        for problem in problems(shape, "cpu").values():
            for name, runs in passes(problem, shape):
                found = microseconds(runs, options.rounds)
                ratio = found[OURS] / min(found[REFERENCE], found[COMPILED])
                rows.append({"problem": problem.title, "shape": shape, "pass": name, "us": found, "ratio": ratio})
    options.output.write_text(json.dumps({"machine": describe(), "rows": rows}, indent=1))
    slower = [row for row in rows if row["ratio"] > NOISE]
    table = Table("problem", "B, T, D", "pass", "ours, us", "faster of the two, us", "ratio")
    for row in slower:
        fastest = min(row["us"][REFERENCE], row["us"][COMPILED])
        cells = (f"{row['us'][OURS]:.0f}", f"{fastest:.0f}", f"{row['ratio']:.2f}")
        table.add_row(row["problem"], ", ".join(map(str, row["shape"])), row["pass"], *cells)
    Console().print(table)
    print(f"{len(slower)} of {len(rows)} slower than the faster of eager and compiled by more than {NOISE - 1:.0%}")


if __name__ == "__main__":
    main()
