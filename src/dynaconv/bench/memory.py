"""The most memory that a function holds at a time."""

import json
import os
import tempfile
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(run: Callable[[], Any], device: str) -> int:
    """The most bytes that PyTorch's allocator holds during a call beyond those it held before, results included.

    Memory that does not come from PyTorch is not in it: on the CPU temporaries inside the kernels, some KB for
    each thread, and those inside libraries such as oneDNN.
    """
    return _cuda_peak(run) if device == "cuda" else _cpu_peak(run)


def _cuda_peak(run: Callable[[], Any]) -> int:
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated() - before


def _cpu_peak(run: Callable[[], Any]) -> int:
    """The CPU allocator keeps no statistics, but the profiler records each allocation (+) and release (-)."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler prints two lines for every use
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    changes = sorted((e["ts"], e["args"]["Ev Idx"], e["args"]["Bytes"]) for e in events if e["name"] == "[memory]")
    return max(accumulate(change for *_, change in changes), default=0)
