"""From a recipe to a trained encoder-decoder in a run folder."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, set_seed

from ..data.batching import Seq2SeqCollator
from ..data.store import digest
from ..data.tokenizer import save_tokenizers
from ..models import LightConvConfig, LightConvForConditionalGeneration
from ..training.checkpoints import loading
from ..training.loading import load_network
from ..training.run import check_run, fit
from ..training.trainer import TokenLoss
from .corpus import SIDES, Corpus, prepare
from .generator import SequenceGenerator
from .recipe import DecodingConfig, PairRecipe
from .search import Search


def train_pairs(
    recipe: PairRecipe[Any],
    run: Path,
    *,
    resume: bool,
    generator: type[SequenceGenerator],
    metric: str,
    measure: Callable[[list[str], list[str]], float],
    **decided: Any,
) -> Path:
    """Train an encoder-decoder.

    The run folder receives what :func:`dynaconv.training.run.fit` says, the tokenizers, and the held-out text
    (`valid.tsv`, `test.tsv`): `from_pretrained(run)` and `generator.from_pretrained(run)` read it.

    Args:
        recipe: what to train, on what, and how.
        run: folder of the run.
        resume: go on from the last whole checkpoint in `run`. The result is the same as without the interruption; with
            more updates than before only if the schedule does not depend on them.
        generator: of the task.
        metric: name of what is measured on the validation set.
        measure: outputs and references to its value.
        **decided: values of the model's configuration, where the recipe does not say them.

    Returns:
        The run folder.

    Raises:
        ValueError: the folder holds a run and `resume` is False, or the run was started with another recipe, with
            other data, or on another number of processes.
    """
    check_before_data(recipe, run, resume=resume, decided=decided)
    corpus = prepare(recipe.data, recipe.vocabulary())
    set_seed(recipe.train.seed)
    model = _build(recipe, configuration(recipe, corpus, decided))
    _set_defaults(model, recipe.decoding)
    sources, references = (lines[: recipe.train.eval_sentences] for lines in corpus.text["valid"].values())

    def measured(_: float) -> float:
        return measure(generator(model, **corpus.tokenizers).generate_distributed(sources), references)

    fit(
        model,
        recipe,
        run,
        train=corpus.train,
        valid=corpus.valid,
        collate=Seq2SeqCollator(),
        data=digest(corpus.directory),
        loss=TokenLoss(recipe.train.label_smoothing),
        metrics={metric: measured} if sources else {},
        save_extra=lambda folder: save_tokenizers(corpus.tokenizers, folder),
        save_text=corpus.save_text,
    )
    return run


def check_before_data(recipe: PairRecipe[Any], run: Path, *, resume: bool, decided: dict[str, Any]) -> None:
    """Refuse what can be seen to be wrong before text is fetched; raises as :func:`train_pairs`."""
    check_run(run, recipe, resume=resume)
    recipe.model.configuration(**decided)
    Search(**asdict(recipe.decoding))


def configuration(recipe: PairRecipe[Any], corpus: Corpus | None, decided: dict[str, Any]) -> LightConvConfig:
    """Of the network that a recipe trains on a corpus; without one, with vocabularies of the size that it asks for.

    Raises:
        ValueError: values that do not fit together.
    """
    sizes = {side: len(corpus.tokenizers[side]) if corpus else recipe.tokenizer.vocab_size for side in SIDES}
    if corpus.joint if corpus else recipe.tokenizer.joint:
        return recipe.model.configuration(vocab_size=sizes["target"], **decided)
    if recipe.model.share_embeddings == "all":
        raise ValueError("model.share_embeddings all needs one vocabulary: set tokenizer.joint true, or share less")
    separate = {"source_vocab_size": sizes["source"], "share_embeddings": "none"}
    return recipe.model.configuration(vocab_size=sizes["target"], **separate, **decided)


def _build(recipe: PairRecipe[Any], config: LightConvConfig) -> LightConvForConditionalGeneration:
    if recipe.model.folder is None:
        return LightConvForConditionalGeneration(config)
    folder = Path(recipe.model.folder)
    with loading(folder):
        read = LightConvForConditionalGeneration.from_pretrained
        return load_network(read, folder, config=config, dtype=torch.float32)


def _set_defaults(model: PreTrainedModel, decoding: DecodingConfig) -> None:
    config: Any = model.generation_config
    config.update(
        num_beams=decoding.beams,
        length_penalty=decoding.length_penalty if decoding.beams > 1 else None,  # transformers refuses it
        no_repeat_ngram_size=decoding.no_repeat_ngram_size,
        min_new_tokens=decoding.min_length,
        max_new_tokens=decoding.max_length,
    )
