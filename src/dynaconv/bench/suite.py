"""The benchmark as a whole."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..data.lines import check_folders
from .contestants import Shape, contestants, problems
from .decoding import BATCHES, TOKENS, few_tokens, generation
from .machine import describe
from .measure import BUFFERS, Setting, dtypes, measure, thread_scaling
from .report import plot, print_tables
from .startup import CACHES, OPERATORS, first_calls

_DEFAULTS: dict[str, tuple[Shape, str]] = {"cpu": ((2, 2048, 1024), "float32"), "gpu": ((4, 4096, 2048), "bfloat16")}


def bench(
    device: str | None = None,
    *,
    shape: Shape | None = None,
    dtype: str | None = None,
    operators: Sequence[str] = (),
    rounds: int = 9,
    threads: int | None = None,
    compiled: bool = True,
    skip_slow: bool = False,
    startup: bool = True,
    decoding: bool = True,
    output: Path | None = None,
) -> dict[str, Any]:
    """Check and measure the operators, print tables, and write OUTPUT.json and OUTPUT.png.

    Args:
        device: "cpu" or "gpu"; None: a GPU if there is one.
        shape: (B, T, D) of x; None: (2, 2048, 1024) on a CPU, (4, 4096, 2048) on a GPU.
        dtype: of all tensors; None: float32 on a CPU, bfloat16 on a GPU.
        operators: names of problems, see :func:`.contestants.problems`; none: all.
        rounds: measurements of every contestant and pass.
        threads: for CPU tensors; None: as PyTorch has them.
        compiled: also measure the compiled reference.
        skip_slow: leave out the peer that materialises windows.
        startup: also measure the first call in new processes.
        decoding: on a CPU, also measure 1, 16 and 128 tokens, and `generate()` of a grafted Llama.
        output: path of the files; their suffixes replace its own.

    Returns:
        The record that is in the JSON file: machine, settings, rows, and on a CPU thread scaling, bf16 beside fp32, few
        tokens, generation, first calls.

    Raises:
        ValueError: an option has no such value, or there is no GPU.
        FileNotFoundError: there is no folder to write to.
        RuntimeError: a contestant disagrees with the reference.
    """
    device = device or ("gpu" if torch.cuda.is_available() else "cpu")
    if device == "gpu" and not torch.cuda.is_available():
        raise ValueError("bench gpu needs a GPU, and PyTorch finds none; `dynaconv bench cpu` needs none")
    check_folders(output)
    if threads is not None:
        torch.set_num_threads(threads)
    shape, dtype = shape or _DEFAULTS[device][0], dtype or _DEFAULTS[device][1]
    setting = Setting(shape, getattr(torch, dtype), "cuda" if device == "gpu" else "cpu", rounds)
    chosen = problems(shape, setting.device, operators)
    on_cpu = setting.device == "cpu"
    scales, decodes = on_cpu and torch.get_num_threads() > 1, on_cpu and decoding
    cold = [name for name in OPERATORS if startup]
    rows, scaling, narrow, few, generated, calls = [], [], [], [], [], []
    steps = rounds * len(chosen) * (1 + scales + on_cpu) + len(CACHES) * len(cold)
    steps += (len(TOKENS) * len(chosen) + len(BATCHES)) * decodes
    with tqdm(total=steps, unit="round") as bar:
        for name, problem in chosen.items():
            bar.set_description(name)
            rows += measure(problem, contestants(problem, compiled=compiled, slow=not skip_slow), setting, bar)
            scaling += thread_scaling(problem, setting, bar) if scales else []
            narrow += dtypes(problem, setting, bar) if on_cpu else []
            few += few_tokens(name, shape[2], rounds, compiled, bar) if decodes else []
        for batch in BATCHES if decodes else ():
            bar.set_description(f"generate, batch {batch}")
            generated.append(generation(batch, rounds, bar))
        bar.set_description("first calls")
        for operator in cold:
            calls += first_calls(operator, setting.device, dtype, bar)
    settings = asdict(setting) | {"dtype": dtype, "operators": list(chosen), "buffers": BUFFERS}
    record = {
        "machine": describe(),
        "settings": settings,
        "rows": rows,
        "thread_scaling": scaling,
        "bf16": narrow,
        "few_tokens": few,
        "generation": generated,
        "first_calls": calls,
    }
    print_tables(record)
    if output is not None:
        output.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        plot(rows, output.with_suffix(".png"))
    return record
