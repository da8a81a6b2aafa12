"""`dynaconv train` for translation."""

from functools import partial
from pathlib import Path

from ...seq2seq.dry_run import dry_run
from ...seq2seq.training import train_pairs
from .evaluation import bleu_score, check_scores
from .recipe import Recipe
from .translator import Translator

NEXT = "dynaconv evaluate {run} {run}/test.tsv"  # what a person does with a run


def train(recipe: Recipe, run: Path, *, resume: bool = False) -> Path:
    """Train a translation model; see :func:`dynaconv.seq2seq.training.train_pairs`."""
    measure = partial(bleu_score, language=recipe.data.target_lang, lowercase=recipe.tokenizer.lowercase)
    check_scores(recipe.data.target_lang)
    return train_pairs(recipe, run, resume=resume, generator=Translator, metric="BLEU", measure=measure)


def plan(recipe: Recipe, run: Path, *, resume: bool = False, processes: int = 1) -> None:
    """Print what training would need; see :func:`dynaconv.seq2seq.dry_run.dry_run`."""
    check_scores(recipe.data.target_lang)
    dry_run(recipe, run, resume=resume, processes=processes)
