"""Checks and measures the contestants of a problem, in interleaved rounds."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .contestants import COPY, OURS, REFERENCE, Problem, Shape
from .memory import peak_bytes
from .peers import Function

logger = logging.getLogger("dynaconv")

BUFFERS = 8  # sets of inputs: together more than a last-level cache, so that inputs and copies come from memory
_TOLERANCES = {torch.float64: 1e-11, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}

Inputs = tuple[Tensor, ...]


def _forward(function: Function, inputs: Inputs, grad: Tensor) -> Inputs:  # noqa: ARG001 (passes are called alike)
    with torch.no_grad():
        return (function(*inputs),)


def _forward_backward(function: Function, inputs: Inputs, grad: Tensor) -> Inputs:
    y = function(*inputs)
    return (y, *torch.autograd.grad(y, inputs, grad))


PASSES = {"forward": _forward, "forward + backward": _forward_backward}


@dataclass(frozen=True)
class Setting:
    """What all measurements have in common: x is [B, T, D] of a dtype, on "cpu" or "cuda"."""

    shape: Shape
    dtype: torch.dtype
    device: str
    rounds: int


def minimal_bytes(inputs: Inputs, y: Tensor, name: str) -> int:
    """Bytes that a pass has to move at least: its inputs read once, its outputs written once.

    With I bytes of inputs (x and filters) and Y bytes of output, the forward pass moves I + Y. The backward pass reads
    the inputs and the gradient of y and writes the gradients of the inputs, 2 I + Y; both together move 3 I + 2 Y.
    """
    read, written = sum(tensor.nbytes for tensor in inputs), y.nbytes
    return read + written if name == "forward" else 3 * read + 2 * written


def checked(problem: Problem, field: dict[str, Function], inputs: Inputs, grad: Tensor) -> dict[str, Function]:
    """Run every pass of every contestant once; outputs and gradients have to be those of the reference.

    The error is relative to the largest value of a tensor, so that one wrong token is enough. A peer that cannot
    compute the problem at all, with such a dtype or so little memory, is left out with a warning.

    Returns:
        The contestants that can compute the problem.

    Raises:
        RuntimeError: a contestant is wrong.
    """
    expected = {name: run(field[REFERENCE], inputs, grad) for name, run in PASSES.items()}
    able = {}
    for contestant, function in field.items():
        try:
            results = {name: run(function, inputs, grad) for name, run in PASSES.items()}
        except Exception as error:  # other people's kernels fail in their own ways
            if contestant in (OURS, REFERENCE):
                raise
            logger.warning("%s: %s is left out: %s", problem.title, contestant, str(error).partition("\n")[0])
            continue
        for name, tensors in results.items():
            for i, (a, b) in enumerate(zip(tensors, expected[name], strict=True)):
                error, tolerance = ((a - b).abs().max() / b.abs().max()).item(), _TOLERANCES[b.dtype]
                if not error <= tolerance:  # so that NaN is wrong as well
                    what = f"the gradient of input {i}" if i else "the output"
                    raise RuntimeError(
                        f"{problem.title}, {contestant}, {name}: {what} differs from the reference by {error:.1e} of "
                        f"its largest value; {b.dtype} allows {tolerance:.0e}"
                    )
        able[contestant] = function
    return able


def measure(problem: Problem, field: dict[str, Function], setting: Setting, bar: tqdm) -> list[dict[str, Any]]:
    """A row for every contestant and pass; every round runs all of them once, each on the next set of inputs."""
    buffers = _buffers(problem, setting)
    inputs, grad = next(buffers)
    field = checked(problem, field, inputs, grad)
    runs = {(name, kind): partial(run, function) for kind, run in PASSES.items() for name, function in field.items()}
    runs[COPY, "forward"] = partial(_forward, lambda x, *_: x.clone())
    clock = _CudaClock() if setting.device == "cuda" else _cpu_milliseconds
    times: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    for _ in range(setting.rounds):
        for key, run in runs.items():
            times[key].append(clock(partial(run, *next(buffers))))
        bar.update()
    rows = []
    copy_ms = float(np.median(times[COPY, "forward"]))
    copy_bytes = minimal_bytes(inputs[:1], grad, "forward")
    for (name, kind), run in runs.items():
        low, ms, high = np.quantile(times[name, kind], (0.25, 0.5, 0.75)).tolist()
        moved = copy_bytes if name == COPY else minimal_bytes(inputs, grad, kind)
        results = sum(tensor.nbytes for tensor in run(inputs, grad))
        peak = peak_bytes(partial(run, inputs, grad), setting.device)
        rows.append(
            {
                "problem": problem.title,
                "contestant": name,
                "pass": kind,
                "ms": ms,
                "min_ms": min(times[name, kind]),
                "spread_percent": 100 * (high - low) / ms,
                "times_ours": ms / float(np.median(times[OURS, kind])),
                "times_copy": ms / copy_ms,
                "bytes": moved,
                "gb_per_s": moved / ms / 1e6,
                "percent_of_copy": 100 * (moved / ms) / (copy_bytes / copy_ms),
                "peak_mb": peak / 1e6,
                "peak_over_results": peak / results,
            }
        )
    return rows


def thread_scaling(problem: Problem, setting: Setting, bar: tqdm) -> list[dict[str, Any]]:
    """Our operator on one thread and on all that PyTorch uses: a row for every pass, with medians in ms."""
    counts = (1, torch.get_num_threads())
    buffers = _buffers(problem, setting)
    times: dict[tuple[str, int], list[float]] = {(kind, count): [] for kind in PASSES for count in counts}
    try:
        for _ in range(setting.rounds):
            for count in counts:
                torch.set_num_threads(count)
                for kind, run in PASSES.items():
                    run(problem.operator, *next(buffers))  # starts the threads
                    times[kind, count].append(_cpu_milliseconds(partial(run, problem.operator, *next(buffers))))
            bar.update()
    finally:
        torch.set_num_threads(counts[1])
    rows = []
    for kind in PASSES:
        one, many = (float(np.median(times[kind, count])) for count in counts)
        rows.append({"problem": problem.title, "pass": kind, "ms_1": one, "ms_all": many, "speedup": one / many})
    return rows


def dtypes(problem: Problem, setting: Setting, bar: tqdm) -> list[dict[str, Any]]:
    """Our operator in fp32 and in bf16: a row for every pass, with medians in ms."""
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16}
    buffers = {name: _buffers(problem, replace(setting, dtype=dtype)) for name, dtype in kinds.items()}
    times: dict[tuple[str, str], list[float]] = {(kind, name): [] for kind in PASSES for name in kinds}
    for _ in range(setting.rounds):
        for kind, name in times:
            times[kind, name].append(_cpu_milliseconds(partial(PASSES[kind], problem.operator, *next(buffers[name]))))
        bar.update()
    rows = []
    for kind in PASSES:
        ms = {name: float(np.median(times[kind, name])) for name in kinds}
        rows.append(
            {"problem": problem.title, "pass": kind, "ms_fp32": ms["fp32"], "ms_bf16": ms["bf16"],
             "ratio": ms["bf16"] / ms["fp32"]}
        )  # fmt: skip
    return rows


def _buffers(problem: Problem, setting: Setting) -> Iterator[tuple[Inputs, Tensor]]:
    """Inputs and gradients of the output, in turn."""
    torch.manual_seed(0)
    inputs = [problem.inputs(setting.shape, setting.dtype, setting.device) for _ in range(BUFFERS)]
    return cycle([(tensors, torch.randn_like(tensors[0], requires_grad=False)) for tensors in inputs])


def _cpu_milliseconds(run: Callable[[], Any]) -> float:
    started = perf_counter()
    run()
    return 1e3 * (perf_counter() - started)


class _CudaClock:
    """Milliseconds that the GPU takes for a call, without the time that Python takes to launch it."""

    def __init__(self) -> None:
        self._cover = torch.empty(1 << 29, dtype=torch.uint8, device="cuda")

    def __call__(self, run: Callable[[], Any]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(8):  # about a millisecond, in which Python runs ahead; it also empties the L2 cache
            self._cover.zero_()
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)
