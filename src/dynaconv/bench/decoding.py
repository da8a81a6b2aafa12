"""Few tokens, where the cost of a call decides and not that of its arithmetic, and `generate()` of a grafted Llama."""

from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import dynaconv

from .contestants import COMPILED, OURS, REFERENCE, contestants, problems
from .measure import PASSES, checked

TOKENS = (1, 16, 128)
BATCHES = (1, 8)
_CALLS = 20  # of a measurement, of which the fastest counts: nothing makes a call faster than it is

Rows = list[dict[str, Any]]


def few_tokens(name: str, dim: int, rounds: int, compiled: bool, bar: tqdm) -> Rows:
    """Microseconds of a call for a batch of one: a row for every number of tokens, pass and contestant.

    One token continues a stream, whose state moves on; more begin one, forwards, and forwards and backwards.
    """
    rows: Rows = []
    able = (OURS, REFERENCE, COMPILED)
    for tokens in reversed(TOKENS):
        shape = (1, tokens, dim)
        torch.manual_seed(0)
        problem = problems(shape, "cpu", [name])[name]
        inputs, grad = problem.inputs(shape, torch.float32, "cpu"), torch.randn(shape)
        field = contestants(problem, compiled=compiled, slow=False)
        if tokens == 1:
            field = {key: _streaming(field[key], inputs) for key in able if key in field}
        else:
            field = checked(problem, field, inputs, grad)
            able = tuple(key for key in able if key in field)
        for kind, run in PASSES.items():
            if tokens == 1 and kind != "forward":
                continue
            best = fastest({key: partial(run, function, inputs, grad) for key, function in field.items()}, rounds)
            rows += [
                {"problem": problem.title, "tokens": tokens, "pass": kind, "contestant": key, "us": 1e6 * seconds,
                 "times_ours": seconds / best[OURS]}
                for key, seconds in best.items()
            ]  # fmt: skip
        bar.update()
    return sorted(rows, key=lambda row: row["tokens"])


def generation(batch: int, rounds: int, bar: tqdm, tokens: int = 32) -> dict[str, Any]:
    """Milliseconds per token of a Llama of 8 layers and width 512, plain and with low-rank convolutions of q, k, v."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "num_attention_heads": 8}
    config = LlamaConfig(vocab_size=8000, **sizes)
    models: dict[str, Any] = {"plain": LlamaForCausalLM(config), "grafted": dynaconv.graft(LlamaForCausalLM(config))}
    ids = torch.randint(0, 8000, (batch, 16))
    options: dict[str, Any] = {
        "max_new_tokens": tokens,
        "min_new_tokens": tokens,
        "do_sample": False,
        "pad_token_id": 0,
        "attention_mask": torch.ones_like(ids),
    }
    runs: dict[str, Callable[[], Any]] = {
        name: partial(model.eval().generate, ids, **options) for name, model in models.items()
    }
    best = fastest(runs, rounds, calls=1)
    bar.update()
    milliseconds = {f"{name}_ms": 1e3 * seconds / tokens for name, seconds in best.items()}
    return {"batch": batch, **milliseconds, "ratio": best["grafted"] / best["plain"]}


def fastest(runs: dict[str, Callable[[], Any]], rounds: int, calls: int = _CALLS) -> dict[str, float]:
    """Seconds of the fastest of `calls` calls in each of the interleaved rounds."""
    best = dict.fromkeys(runs, float("inf"))
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            for _ in range(calls):
                started = perf_counter()
                run()
                best[name] = min(best[name], perf_counter() - started)
    return best


def _streaming(function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Callable[..., Tensor]:
    """A contestant that continues a stream."""
    width = inputs[-1].shape[-1]
    return partial(function, state=torch.zeros(1, width - 1, inputs[0].shape[2]))
