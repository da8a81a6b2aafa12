"""`dynaconv train --dry-run` of encoder-decoders: data and sizes of a run, and what it needs."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.batching import Seq2SeqCollator, TokenBatchSampler
from ..models import LightConvForConditionalGeneration
from ..training.dry_run import Batches, print_needs
from ..training.trainer import TokenLoss
from .corpus import SIDES, SPLITS, Corpus, prepare
from .recipe import PairRecipe
from .training import check_before_data, configuration


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
        ValueError: the folder holds something already, the recipe does not fit together, the data is not
            given or cannot be used, or there is too little disk or memory; before the last three a table of all that is
            known is printed.
        FileNotFoundError: no such file.
    """
    check_before_data(recipe, run, resume=resume, decided=decided)
    try:
        corpus, missing = prepare(recipe.data, recipe.vocabulary()), None
    except (ValueError, FileNotFoundError) as error:
        corpus, missing = None, error
    config = configuration(recipe, corpus, decided)
    with torch.device("meta"):
        model = LightConvForConditionalGeneration(config)
    origin = recipe.model.folder or recipe.model.preset
    title = f"{run}: {origin}, {config.encoder_mixer} encoder, {config.decoder_mixer} decoder"
    loss = TokenLoss(recipe.train.label_smoothing)
    print_needs(
        title, model, _batches(recipe, corpus), loss, recipe.train, run,
        processes=processes, data=_describe(recipe, corpus), unit="target tokens", missing=missing,
    )  # fmt: skip


def _describe(recipe: PairRecipe[Any], corpus: Corpus | None) -> str:
    if corpus is None:
        source, target = recipe.data.usual_lengths().values()
        return f"not there; the figures are for sources of {source} and targets of {target} tokens"
    counts = [int(corpus.train.lengths[side].sum()) for side in SIDES]
    sizes = ", ".join(f"{name} {len(getattr(corpus, name)):,}" for name in SPLITS)
    most = max(int(corpus.train.lengths[side].max()) for side in SIDES)
    return f"pairs: {sizes}; training tokens: {' and '.join(f'{n:,}' for n in counts)}, in a row {most}"


def _batches(recipe: PairRecipe[Any], corpus: Corpus | None) -> Batches:
    collate, max_tokens = Seq2SeqCollator(), recipe.train.max_tokens
    if corpus is None:
        lengths = {side: min(length, max_tokens) for side, length in recipe.data.usual_lengths().items()}
        pair = {side: np.zeros(length, np.int64) for side, length in lengths.items()}
        batch = collate([pair] * (max_tokens // max(lengths.values())))
        return Batches(batch["labels"].numel(), batch, batch)
    batches = list(TokenBatchSampler.of(corpus.train, max_tokens, shuffle=False))
    usual, longest = (collate([corpus.train[i] for i in rows]) for rows in (batches[len(batches) // 2], batches[-1]))
    targets = int(corpus.train.lengths["target"].sum())
    return Batches(targets / len(batches), usual, longest, targets)
