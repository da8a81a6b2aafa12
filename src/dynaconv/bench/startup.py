"""What the first call of an operator costs: Triton compiles for it, and keeps what it has compiled on disk."""

import json
import os
import subprocess
import sys
import tempfile
from time import perf_counter
from typing import Any

import torch
from tqdm import tqdm

import dynaconv

# Small inputs: what counts is the time to compile.
OPERATORS = {
    "static_conv": ((1, 8, 64), (64, 4)),
    "dynamic_conv": ((1, 8, 64), (1, 8, 4, 4)),
    "lowrank_conv": ((1, 8, 64), (1, 8, 16), (16, 64, 4)),
}
CACHES = ("empty", "warm")


def first_calls(operator: str, device: str, dtype: str, bar: tqdm) -> list[dict[str, Any]]:
    """Milliseconds of the first passes in a new process: a row with an empty cache, and one with a warm cache."""
    rows = []
    command = [sys.executable, "-m", __name__, operator, device, dtype]
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "TRITON_CACHE_DIR": folder}
        for cache in CACHES:
            result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
            if result.returncode:
                raise RuntimeError(f"{operator} failed in a new process:\n{result.stderr}")
            rows.append({"operator": operator, "cache": cache, **json.loads(result.stdout)})
            bar.update()
    return rows


def _measure(operator: str, device: str, dtype: torch.dtype) -> dict[str, float]:
    inputs = [torch.randn(s, dtype=dtype, device=device, requires_grad=True) for s in OPERATORS[operator]]
    started = perf_counter()
    y = getattr(dynaconv, operator)(*inputs)
    called = perf_counter()
    y.sum().backward()
    if device == "cuda":
        torch.cuda.synchronize()
    return {"forward_ms": 1e3 * (called - started), "backward_ms": 1e3 * (perf_counter() - called)}


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1], sys.argv[2], getattr(torch, sys.argv[3]))))
