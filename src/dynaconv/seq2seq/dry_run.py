"""`dynaconv train --dry-run`: data, sizes, memory, disk and cost of a run, before anything is spent."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from ..data.batching import Seq2SeqCollator, TokenBatchSampler
from ..models import LightConvForConditionalGeneration
from ..training.estimate import ACCELERATORS, UTILISATION, Estimate, estimate, free_disk
from ..training.trainer import TokenLoss
from .corpus import SIDES, SPLITS, Corpus, prepare
from .recipe import PairRecipe
from .training import check_before_data, configuration

USUAL_TOKENS = 32  # of a sequence, where the data is not there


@dataclass(frozen=True)
class _Batches:
    """What the batches of one device are: their mean number of target tokens, one of them, and the longest one."""

    target_tokens: float
    usual: dict[str, torch.Tensor]
    longest: dict[str, torch.Tensor]


def dry_run(recipe: PairRecipe[Any], run: Path, *, resume: bool, processes: int, **decided: Any) -> None:
    """Check what a run needs and print it.

    The data is prepared where it is given: training finds it again.

    Args:
        recipe: of the task.
        run: the folder that the run would have.
        resume: the run is to go on.
        processes: how many devices would train.
        **decided: values of the model's configuration, where the recipe does not say them.

    Raises:
        ValueError: no process, the folder holds something already, the recipe does not fit together, the data is not
            given or cannot be used, or there is too little disk or memory; before the last three a table of all that is
            known is printed.
        FileNotFoundError: no such file.
    """
    if processes < 1:
        raise ValueError(f"--processes must be 1 or more; got {processes}")
    check_before_data(recipe, run, resume=resume, decided=decided)
    try:
        corpus, missing = prepare(recipe.data, recipe.tokenizer), None
    except (ValueError, FileNotFoundError) as error:
        corpus, missing = None, error
    config = configuration(recipe, corpus, decided)
    with torch.device("meta"):
        model = LightConvForConditionalGeneration(config)
    batches = _batches(recipe, corpus)
    loss = TokenLoss(recipe.train.label_smoothing)
    usual, longest = (estimate(model, batch, loss) for batch in (batches.usual, batches.longest))
    needed, free = (recipe.train.average_last + 1) * longest.checkpoint, free_disk(run)
    rows = _rows(recipe, corpus, batches, usual, longest, processes)
    rows["disk"] = f"{_gb(needed)} for checkpoints; {_gb(free)} are free"
    title = f"{run}: {recipe.model.preset}, {config.encoder_mixer} encoder, {config.decoder_mixer} decoder"
    table = Table("", "needs", title=title)
    for row in rows.items():
        table.add_row(*row)
    Console().print(table)
    if missing is not None:
        raise missing
    if needed > free:
        raise ValueError(f"{_gb(needed)} of checkpoints do not fit on the disk of {run}, where {_gb(free)} are free")
    least = longest.memory - longest.activations // 2  # with bf16
    if torch.cuda.is_available() and least > (memory := torch.cuda.get_device_properties(0).total_memory):
        raise ValueError(f"training needs at least {_gb(least)}, the GPU has {_gb(memory)}: lower train.max_tokens")


def _rows(
    recipe: PairRecipe[Any], corpus: Corpus | None, batches: _Batches, usual: Estimate, longest: Estimate,
    processes: int,
) -> dict[str, str]:  # fmt: skip
    options = recipe.train
    batches_per_update = processes * options.accumulation
    tokens = batches.target_tokens * batches_per_update
    flops = usual.flops * batches_per_update * options.max_steps
    hours = {name: flops / (peak * UTILISATION) / 3600 for name, peak in ACCELERATORS.items()}
    if corpus is None:
        data, epochs = f"not there; the figures are for sequences of {USUAL_TOKENS} tokens", ""
    else:
        counts = {side: int(corpus.train.lengths[side].sum()) for side in SIDES}
        sizes = ", ".join(f"{name} {len(getattr(corpus, name)):,}" for name in SPLITS)
        most = max(int(corpus.train.lengths[side].max()) for side in SIDES)
        data = f"pairs: {sizes}; training tokens: {' and '.join(f'{n:,}' for n in counts.values())}, in a row {most}"
        epochs = f", {tokens * options.max_steps / counts['target']:.1f} epochs"
    devices = f"{processes} device{'s' if processes > 1 else ''}"
    return {
        "data": data,
        "parameters": f"{usual.parameters:,}",
        "update": f"{tokens:,.0f} target tokens: {devices} x {options.accumulation} x up to {options.max_tokens:,}",
        "run": f"{options.max_steps:,} updates, {tokens * options.max_steps:.3g} target tokens{epochs}",
        "compute": f"{flops:.3g} FLOPs, forward and backward",
        "GPU hours": ", ".join(f"{name} {value:.2g}" for name, value in hours.items())
        + f", at {UTILISATION:.0%} of their peak",
        "memory": f"{_gb(longest.memory)} on a device, of which {_gb(longest.activations)} are activations in fp32, "
        "half as much in bf16",
    }


def _batches(recipe: PairRecipe[Any], corpus: Corpus | None) -> _Batches:
    collate, max_tokens = Seq2SeqCollator(), recipe.train.max_tokens
    if corpus is None:
        ids = np.zeros(min(USUAL_TOKENS, max_tokens), np.int64)
        batch = collate([dict.fromkeys(SIDES, ids)] * (max_tokens // len(ids)))
        return _Batches(batch["labels"].numel(), batch, batch)
    batches = list(TokenBatchSampler.of(corpus.train, max_tokens, shuffle=False))
    usual, longest = (collate([corpus.train[i] for i in rows]) for rows in (batches[len(batches) // 2], batches[-1]))
    return _Batches(float(corpus.train.lengths["target"].sum()) / len(batches), usual, longest)


def _gb(count: int) -> str:
    return f"{count / 1e9:.3g} GB"
