"""`dynaconv train` for summarization."""

from pathlib import Path
from typing import Any

from ...seq2seq.dry_run import dry_run
from ...seq2seq.training import train_pairs
from .evaluation import rouge_l
from .recipe import Recipe
from .summarizer import Summarizer

NEXT = "dynaconv evaluate {run} {run}/test.tsv"  # what a person does with a run


def train(recipe: Recipe, run: Path, *, resume: bool = False) -> Path:
    """Train a summarization model; see :func:`dynaconv.seq2seq.training.train_pairs`."""
    return train_pairs(
        recipe,
        run,
        resume=resume,
        generator=Summarizer,
        metric="ROUGE-L",
        measure=rouge_l,
        **_decided(recipe),
    )


def plan(recipe: Recipe, run: Path, *, resume: bool = False, processes: int = 1) -> None:
    """Print what training would need; see :func:`dynaconv.seq2seq.dry_run.dry_run`."""
    dry_run(recipe, run, resume=resume, processes=processes, **_decided(recipe))


def _decided(recipe: Recipe) -> dict[str, Any]:
    return {"max_source_positions": recipe.data.max_source_tokens}
