"""`dynaconv train` for language models."""

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, set_seed

from ...data.batching import NO_LABEL, TokenBatchSampler
from ...data.documents import COLUMN, CausalCollator
from ...data.store import digest
from ...data.tokenizer import save_tokenizers
from ...models import DynaConvForCausalLM
from ...training.dry_run import Batches, print_needs
from ...training.estimate import estimate
from ...training.run import check_run, fit
from .corpus import TEXT, Corpus, prepare, vocabulary_of
from .network import build, check_causal
from .recipe import Recipe

LARGE = 1e9  # parameters
NEXT = "dynaconv perplexity {run} {run}/test.txt --sequences line"  # what a person does with a run


def train(recipe: Recipe, run: Path, *, resume: bool = False) -> Path:
    """Train a language model.

    The run folder receives what :func:`dynaconv.training.run.fit` says, the tokenizer, and the held-out text
    (`valid.txt`, `test.txt`): `AutoModelForCausalLM.from_pretrained(run)` reads it, or `dynaconv.from_pretrained(run)`
    where convolutions were grafted.

    Args:
        recipe: what to train, on what, and how.
        run: folder of the run.
        resume: go on from the last whole checkpoint in `run`. The result is the same as without the interruption; with
            more updates than before only if the schedule does not depend on them.

    Returns:
        The run folder.

    Raises:
        ValueError: the folder holds a run and `resume` is False, or the run was started with another recipe, with
            other data, or on another number of processes; the model keeps packed documents not apart.
        FileNotFoundError: no such file.
        DivergenceError: the loss or a weight became infinite or NaN.
    """
    check_run(run, recipe, resume=resume)
    recipe.model.configuration()
    corpus = prepare(recipe.data, vocabulary_of(recipe))
    set_seed(recipe.train.seed)
    config = _configuration(recipe, corpus)
    model = build(recipe.model, config)
    check_causal(model, packed=recipe.data.rows == "packed")
    sizes = corpus.sizes["valid"]
    per_byte = sizes["tokens"] / sizes["bytes"] / math.log(2)
    metrics: dict[str, Callable[[float], float]] = {"perplexity": _exp}
    if not sizes["cut"] and recipe.tokenizer.kind == "bytes":  # otherwise not all bytes are predicted
        metrics["bits_per_byte"] = lambda loss: loss * per_byte
    fit(
        model,
        recipe,
        run,
        train=corpus.train,
        valid=corpus.valid,
        collate=CausalCollator(),
        data=digest(corpus.directory),
        loss=None,
        metrics=metrics,
        save_extra=lambda folder: save_tokenizers({TEXT: corpus.tokenizer}, folder),
        save_text=corpus.save_text,
        flops=_flops(recipe, config, corpus, model.num_parameters()),
    )
    return run


def plan(recipe: Recipe, run: Path, *, resume: bool = False, processes: int = 1) -> None:
    """Print what training would need; see :func:`dynaconv.training.dry_run.print_needs`."""
    check_run(run, recipe, resume=resume)
    try:
        corpus, missing = prepare(recipe.data, vocabulary_of(recipe)), None
    except (ValueError, FileNotFoundError) as error:
        corpus, missing = None, error
    config = _configuration(recipe, corpus)
    model = _without_data(recipe, config)
    batches = _batches(recipe, corpus, config.get_text_config().vocab_size)
    print_needs(
        f"{run}: {recipe.model.folder or recipe.model.host}", model, batches, None, recipe.train, run,
        processes=processes, data=_describe(recipe, corpus), unit="tokens", missing=missing,
    )  # fmt: skip


def _without_data(recipe: Recipe, config: Any) -> PreTrainedModel:
    """The network without weights: ours on the meta device, others, which look at values, in unwritten memory."""
    model = recipe.model
    if model.folder is not None:
        model = replace(model, folder=None, host=config.model_type)
    with torch.device("meta"):
        network = build(model, config)
    if not isinstance(network, DynaConvForCausalLM):
        network.to_empty(device="cpu").tie_weights()
    return network


def _flops(recipe: Recipe, config: Any, corpus: Corpus, parameters: int) -> float | None:
    """For each label of a row, both ways; None for large models of others, whose products would have to be made."""
    ours = config.model_type == "dynaconv"
    if not ours and parameters > LARGE:
        return None
    row = CausalCollator()([{COLUMN: corpus.train[0][COLUMN]}])
    row = row if ours else {name: tensor[:, :128] for name, tensor in row.items()}
    labels = int((row["labels"] != NO_LABEL).sum())
    return estimate(_without_data(recipe, deepcopy(config)), row, None).flops / labels


def _describe(recipe: Recipe, corpus: Corpus | None) -> str:
    if corpus is None:
        return f"not there; the figures are for rows of {recipe.data.window} tokens"
    documents = ", ".join(f"{split} {size['documents']:,}" for split, size in corpus.sizes.items())
    train = corpus.sizes["train"]
    return (
        f"documents: {documents}; training tokens: {train['tokens']:,}, {train['tokens'] / train['bytes']:.3f} a byte"
    )


def _batches(recipe: Recipe, corpus: Corpus | None, vocab_size: int) -> Batches:
    """One packed row stands for all of a batch, which are equally long; as if it were one document."""
    if corpus is None:
        count = max(1, recipe.train.max_tokens // recipe.data.window)
        ids = (vocab_size ** torch.rand(1, recipe.data.window)).long().clamp(max=vocab_size - 1)  # as frequent as words
        batch = {"input_ids": ids, "labels": ids}
        return Batches(count * recipe.data.window, batch, batch, repeat=count)
    batches = list(TokenBatchSampler.of(corpus.train, recipe.train.max_tokens, shuffle=False))
    packed = recipe.data.rows == "packed"
    repeat = len(batches[0]) if packed else 1
    chosen = [rows[:1] if packed else rows for rows in (batches[len(batches) // 2], batches[-1])]
    usual, longest = (CausalCollator()([{COLUMN: corpus.train[i][COLUMN]} for i in rows]) for rows in chosen)
    tokens = corpus.sizes["train"]["tokens"]
    return Batches(tokens / len(batches), usual, longest, labels_of_epoch=tokens, repeat=repeat)


def _configuration(recipe: Recipe, corpus: Corpus | None) -> Any:
    if corpus is None:
        return recipe.model.configuration(
            **({} if recipe.model.folder else {"vocab_size": recipe.tokenizer.vocab_size})
        )
    tokenizer: Any = corpus.tokenizer
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return recipe.model.configuration(vocab_size=len(tokenizer), **special)


def _exp(loss: float) -> float:
    return math.exp(min(loss, 700.0))
