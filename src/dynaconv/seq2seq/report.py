"""What the commands print: outputs for lines of text, and a description of a corpus."""

import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ..data.lines import count_lines, read_lines
from ..training.recipe import load_recipe, recipe_file
from .corpus import SPLITS, prepare
from .generator import SequenceGenerator
from .recipe import PairRecipe

logger = logging.getLogger("dynaconv")
R = TypeVar("R", bound=PairRecipe[Any])


def generate_files(
    kind: type[SequenceGenerator],
    model: Path,
    files: Sequence[Path],
    *,
    nbest: int,
    device: str | None,
    ensemble: Sequence[Path],
    **options: Any,
) -> None:
    """Outputs for the lines of files, or of standard input, to standard output; see `SequenceGenerator.stream`.

    Lines are written as soon as they are complete, so that an interruption leaves a prefix of the output.
    """
    total = count_lines(files)  # also sees a file that is not there
    generator = kind.from_pretrained(model, device, ensemble=ensemble)
    started, number = time.perf_counter(), 0
    with logging_redirect_tqdm():
        for window in generator.stream(read_lines(files), nbest=nbest, progress=True, total=total, **options):
            with tqdm.external_write_mode():
                for hypotheses in window:
                    number += 1
                    for text, score in hypotheses:
                        # A line and its end in one piece: a pipe takes both or, interrupted, neither.
                        sys.stdout.write(f"{text}\n" if nbest == 1 else f"{number}\t{score:.4f}\t{text}\n")
                        sys.stdout.flush()
    seconds = time.perf_counter() - started
    logger.info("%d lines in %.1f s: %.1f lines/s", number, seconds, number / max(seconds, 1e-9))


def describe_corpus(recipe: PairRecipe[Any]) -> None:
    """Prepare the data of a recipe and print sizes and examples."""
    corpus = prepare(recipe.data, recipe.vocabulary())
    table = Table("split", "pairs", "source tokens", "target tokens", "longest", title=str(corpus.directory))
    for split in SPLITS:
        lengths = list(getattr(corpus, split).lengths.values())
        longest = max(side.max(initial=0) for side in lengths)
        table.add_row(split, f"{len(lengths[0]):,}", *(f"{side.sum():,}" for side in lengths), str(longest))
    console = Console()
    console.print(table)
    for pair in list(zip(*corpus.text["test"].values(), strict=True))[:5]:
        show_sample(console, dict(zip(recipe.data.names().values(), pair, strict=True)))


def show_sample(console: Console, lines: dict[str, str]) -> None:
    """Print lines of text beside what they are."""
    width = max(map(len, lines))
    for label, line in lines.items():
        console.print(f"{label:<{width}}  {line}", markup=False, highlight=False)
    console.print()


def recipe_of(model: Path, kind: type[R]) -> R | None:
    """The recipe that a model was trained with, where it stands beside it."""
    path = recipe_file(model)
    return load_recipe(path, kind) if path else None
