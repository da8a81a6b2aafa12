"""The operators beside the reference, eager and under torch.compile, over sizes from one token to B 8, T 2048, D 1024.

Every number is the fastest call of a few interleaved rounds. The table shows where ours is slower than the faster of
the two; the JSON has everything.

    python benchmarks/sweep.py --output benchmarks/results/sweep_cpu.json
"""

import argparse
import json
import math
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from dynaconv.bench.contestants import COMPILED, OURS, REFERENCE, Problem, Shape, contestants, problems
from dynaconv.bench.decoding import fastest
from dynaconv.bench.machine import describe
from dynaconv.bench.measure import PASSES, checked

SHAPES: tuple[Shape, ...] = tuple(product((1, 8), (1, 2, 16, 128, 2048), (64, 1024)))
NUMBERS = 1 << 21  # of x in the calls of a round
NOISE = 1.05


def measure(problem: Problem, shape: Shape, rounds: int) -> Iterator[dict[str, Any]]:
    """A row for the pass forwards, and for 16 and more tokens both ways."""
    inputs, grad = problem.inputs(shape, torch.float32, "cpu"), torch.randn(shape)
    field = checked(problem, contestants(problem, compiled=True, slow=False), inputs, grad)
    calls = min(200, max(2, NUMBERS // math.prod(shape)))
    for kind, run in PASSES.items():
        if kind == "forward" or shape[1] >= 16:
            runs: dict[str, Any] = {
                name: partial(run, field[name], inputs, grad) for name in (OURS, REFERENCE, COMPILED)
            }
            us = {name: 1e6 * seconds for name, seconds in fastest(runs, rounds, calls).items()}
            ratio = us[OURS] / min(us[REFERENCE], us[COMPILED])
            yield {"problem": problem.title, "shape": shape, "pass": kind, "us": us, "ratio": ratio}


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
            rows += measure(problem, shape, options.rounds)
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
