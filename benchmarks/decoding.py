"""Decoding on a CPU: one token through every operator, and `generate()` of a grafted Llama beside the plain one.

Rounds are interleaved; shown are minima, since nothing makes a call faster than it is.

    python benchmarks/decoding.py --output benchmarks/results/decoding_cpu.json
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

import dynaconv
from dynaconv.bench.machine import describe


def minima(functions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Seconds of the fastest call of each."""
    fastest = dict.fromkeys(functions, float("inf"))
    for _ in tqdm(range(rounds), desc=", ".join(functions), leave=False):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            fastest[name] = min(fastest[name], time.perf_counter() - started)
    return fastest


@torch.no_grad()
def one_token(dim: int, rounds: int) -> dict[str, float]:
    """Microseconds of a call with a state, which moves on."""
    x, static = torch.randn(1, 1, dim), torch.randn(dim, 4)
    states = {width: torch.zeros(1, width - 1, dim) for width in (4, 31)}
    wide, basis = torch.randn(16, 31), torch.randn(dim, 16, 4).transpose(0, 1)
    heads, wide_heads, codes = torch.randn(1, 1, 16, 4), torch.randn(1, 1, 16, 31), torch.randn(1, 1, 16)
    a, b, c, d = static.unbind(1)
    functions = {
        "static, W 4": lambda: dynaconv.static_conv(x, static, state=states[4]),
        "LightConv, W 31": lambda: dynaconv.static_conv(x, wide, state=states[31]),
        "head-wise, W 4": lambda: dynaconv.dynamic_conv(x, heads, state=states[4]),
        "DynamicConv, W 31": lambda: dynaconv.dynamic_conv(x, wide_heads, state=states[31]),
        "low rank, R 16, W 4": lambda: dynaconv.lowrank_conv(x, codes, basis, state=states[4]),
        "4 multiplications, 3 sums": lambda: x * a + x * b + x * c + x * d,
    }
    return {name: seconds * 1e6 for name, seconds in minima(functions, rounds).items()}


def generation(batch: int, rounds: int, tokens: int = 32) -> dict[str, float]:
    """Milliseconds per token of a Llama of 8 layers and width 512, plain and with low-rank convolutions of q, k, v."""
    sizes = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "num_attention_heads": 8}
    config = LlamaConfig(vocab_size=8000, **sizes)
    models: dict[str, Any] = {"plain": LlamaForCausalLM(config), "grafted": dynaconv.graft(LlamaForCausalLM(config))}
    ids = torch.randint(0, 8000, (batch, 16))
    options: dict[str, Any] = {
        "max_new_tokens": tokens,
        "min_new_tokens": tokens,
        "do_sample": False,
        "pad_token_id": 0,
    }
    options["attention_mask"] = torch.ones_like(ids)
    functions: dict[str, Callable[[], Any]] = {
        name: partial(model.eval().generate, ids, **options) for name, model in models.items()
    }
    return {name: seconds / tokens * 1e3 for name, seconds in minima(functions, rounds).items()}


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3000, help="calls of every operator")
    parser.add_argument("--generations", type=int, default=7, help="of every model")
    parser.add_argument("--output", type=Path, help="write the results here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.set_verbosity_error()
    record: dict[str, Any] = {"machine": describe(), "one token, us": one_token(1024, options.rounds)}
    for batch in (1, 8):
        record[f"generate, batch {batch}, ms a token"] = generation(batch, options.generations)
    table = Table("what", "time")
    for title, results in record.items():
        for name, value in results.items() if title != "machine" else ():
            table.add_row(f"{title}: {name}", f"{value:.1f}")
    Console().print(table)
    if options.output is not None:
        options.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
