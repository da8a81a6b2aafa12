"""Graft every causal language model type of transformers, tiny and random, and compare it with the plain model.

    python benchmarks/graft_hosts.py --output docs/hosts.md [--types llama qwen3] [--placement qkv]

What a plain model does right (decoding with a cache as without, beams, padding, packed sequences, saving) the grafted
one has to do too, with large random convolutions; under the identity initialisation its logits are those of the plain
one, to the bit. A type is served, refused by `dynaconv.graft` with a reason, or wrong.
"""

import argparse
import contextlib
import copy
import dataclasses
import itertools
import json
import logging
import signal
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from tiny_hosts import make
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import dynaconv
from dynaconv.models.huggingface import CACHE

SECONDS = 120  # for one check of one type


def tokens(batch: int = 2, length: int = 11, seed: int = 1) -> Tensor:
    """[B, T] random tokens that are none of the special ones."""
    return torch.randint(3, 61, (batch, length), generator=torch.Generator().manual_seed(seed))


def whole(model: Any, ids: Tensor, **keywords: Any) -> Tensor:
    """Logits [B, T, V] without a cache."""
    return model(ids, use_cache=False, **keywords).logits


def error(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest number expected."""
    return float((actual - expected).abs().max() / expected.abs().max())


def decoding(model: Any, chunk: int) -> float:
    """A prompt and chunks, each with the cache of what came before."""
    ids, pieces, cache = tokens(), [], None
    for begin, end in [(0, 4), *((at, min(at + chunk, 11)) for at in range(4, 11, chunk))]:
        output = model(ids[:, begin:end], use_cache=True, **({CACHE: cache} if cache is not None else {}))
        cache = output[CACHE]
        pieces.append(output.logits)
    return error(torch.cat(pieces, 1), whole(model, ids))


def generated(model: Any, ids: Tensor, **keywords: Any) -> Any:
    """What `generate` returns for six new tokens."""
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True}
    return model.generate(ids, **options, **keywords)


def greedy(model: Any, ids: Tensor, **keywords: Any) -> Tensor:
    """[B, 6, V] logits of six new tokens."""
    return torch.stack(generated(model, ids, output_logits=True, **keywords).logits, 1)


def beams(model: Any) -> float:
    """Beam search with a cache and without."""
    wrong = 0.0
    for seed in (1, 2):
        ids = tokens(seed=seed)
        cached, uncached = (generated(model, ids, num_beams=3, use_cache=use).sequences for use in (True, False))
        wrong = max(wrong, float(not torch.equal(cached, uncached)))
    return wrong


def static_cache(model: Any) -> float:
    """Greedy search with a static cache and without any."""
    ids = tokens()
    return error(greedy(model, ids, cache_implementation="static"), greedy(model, ids, use_cache=False))


def left_padding(model: Any) -> float:
    """Logits, also those of generated tokens, of a row beside a longer one."""
    ids, padded = tokens(), tokens(length=14, seed=2)
    padded[0, 3:] = ids[0]
    mask = torch.ones_like(padded)
    mask[0, :3] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = whole(model, padded, attention_mask=mask, position_ids=positions)[:1, 3:]
    new = greedy(model, padded, attention_mask=mask)[:1]
    return max(error(logits, whole(model, ids[:1])), error(new, greedy(model, ids[:1])))


def packing(model: Any) -> float:
    """Three sequences in one row, told apart by their positions."""
    ids, ends = tokens(1, 14), (0, 3, 8, 14)
    positions = torch.cat([torch.arange(end - start) for start, end in itertools.pairwise(ends)])[None]
    separate = [whole(model, ids[:, start:end]) for start, end in itertools.pairwise(ends)]
    return error(whole(model, ids, position_ids=positions), torch.cat(separate, 1))


def saving(model: Any) -> float:
    """Saved and loaded again."""
    grafted = hasattr(model.config, "dynaconv")
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = (dynaconv if grafted else type(model)).from_pretrained(folder).eval()
        return error(whole(again, tokens()), whole(model, tokens()))


def training(model: Any) -> float:
    """Every parameter that the graft has brought gets a gradient."""
    model = copy.deepcopy(model).train()
    with torch.enable_grad():
        whole(model, tokens()).square().mean().backward()
    added = [parameter for name, parameter in model.named_parameters() if "short_convs" in name]
    return float(not all(p.grad is not None and p.grad.isfinite().all() for p in added))


CHECKS: dict[str, Callable[[Any], float]] = {
    "decoding": lambda model: max(decoding(model, 1), decoding(model, 3)),
    "beams": beams,
    "static cache": static_cache,
    "left padding": left_padding,
    "packing": packing,
    "saving": saving,
    "training": training,
}


@contextlib.contextmanager
def limit() -> Iterator[None]:
    """Raise TimeoutError where something takes too long."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"took more than {SECONDS} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)


def run(check: Callable[[Any], float], model: Any) -> str:
    """What came of it: "ok", how far off, or the error raised."""
    try:
        with limit(), torch.no_grad():
            off = check(model)
    except Exception as raised:  # whatever a foreign model raises is a result
        return f"{type(raised).__name__}: {str(raised).strip().splitlines()[0] if str(raised).strip() else ''}"[:160]
    return "ok" if off < 1e-4 else f"off by {off:.2g}"


def is_right(check: Callable[[Any], float], plain: Any) -> bool:
    """Whether a plain model does it: to rounding also in fp64, if it runs in that."""
    if run(check, plain) != "ok":
        return False
    exact = run(lambda model: 1e6 * check(model), copy.deepcopy(plain).double())
    return not exact.startswith("off")


@dataclasses.dataclass
class Result:
    """What became of one type."""

    kind: str
    verdict: str  # "served", "refused", "wrong" or "not made"
    reason: str = ""
    failed: dict[str, str] = dataclasses.field(default_factory=dict)  # checks that the plain model passes


def try_type(kind: str, placement: str) -> Result:
    """Make a model, graft it, compare."""
    try:
        with limit(), torch.no_grad():
            plain = make(kind)
            before = whole(plain, tokens())
    except Exception as raised:
        return Result(kind, "not made", f"{type(raised).__name__}: {str(raised).splitlines()[0][:120]}")
    model: PreTrainedModel = copy.deepcopy(plain)
    try:
        dynaconv.graft(model, placement, rank=2)
    except ValueError as refusal:
        return Result(kind, "refused", str(refusal))
    failed = {}
    identity = run(lambda graft: 0.0 if torch.equal(whole(graft, tokens()), before) else 1.0, model)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "short_convs" in name:
            nn.init.normal_(parameter, std=0.3)
    effect = run(lambda graft: float(error(whole(graft, tokens()), before) < 1e-3), model)
    failed = {name: found for name, found in (("identity", identity), ("effect", effect)) if found != "ok"}
    for name, check in CHECKS.items():
        found = run(check, model)
        if found != "ok" and is_right(check, plain):
            failed[name] = found
    return Result(kind, "wrong" if failed else "served", "", failed)


def table(results: list[Result], placement: str) -> str:
    """Markdown."""
    counts = Counter(result.verdict for result in results)
    head = f"## {placement}: " + ", ".join(f"{number} {verdict}" for verdict, number in counts.most_common())
    rows = [
        f"| {r.kind} | {r.verdict} | {r.reason or '; '.join(f'{k}: {v}' for k, v in r.failed.items())} |"
        for r in results
    ]
    return "\n".join([head, "", "| type | verdict | why |", "|---|---|---|", *rows, ""])


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", nargs="*", default=list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
    parser.add_argument("--placement", nargs="*", default=["qkv", "all_linear"])
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity(logging.CRITICAL)
    torch.set_num_threads(1)
    tables = [f"transformers {transformers.__version__}, torch {torch.__version__}\n"]
    for placement in options.placement:
        bar = tqdm(options.types, desc=placement, unit="type")
        results = [try_type(kind, placement) for kind in bar]
        tables.append(table(results, placement))
        for result in results:
            if result.verdict != "served":
                print(json.dumps(dataclasses.asdict(result)))
        print(Counter(result.verdict for result in results))
    if options.output:
        options.output.write_text("\n".join(tables), encoding="utf-8")


if __name__ == "__main__":
    main()
