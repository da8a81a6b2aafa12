"""What the commands print: translations, tables of scores, and a description of a corpus."""

import json
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ...data.lines import count_lines, read_lines
from ...training.recipe import load_recipe
from .corpus import SPLITS, DataConfig, prepare, read_parallel
from .evaluation import evaluate
from .recipe import Recipe
from .translator import Translator

logger = logging.getLogger("dynaconv")


def translate_files(model: Path, files: Sequence[Path], *, nbest: int, device: str | None, **options: Any) -> None:
    """Translate the lines of files, or of standard input, to standard output; see `Translator.stream`.

    Lines are written as soon as they are complete, so that an interruption leaves a prefix of the output.
    """
    translator = Translator.from_pretrained(model, device)
    started, number = time.perf_counter(), 0
    with logging_redirect_tqdm():
        lines, total = read_lines(files), count_lines(files)
        for window in translator.stream(lines, nbest=nbest, progress=True, total=total, **options):
            with tqdm.external_write_mode():
                for hypotheses in window:
                    number += 1
                    for text, score in hypotheses:
                        # A line and its end in one piece: a pipe takes both or, interrupted, neither.
                        sys.stdout.write(f"{text}\n" if nbest == 1 else f"{number}\t{score:.4f}\t{text}\n")
                        sys.stdout.flush()
    seconds = time.perf_counter() - started
    logger.info("%d lines in %.1f s: %.1f sentences/s", number, seconds, number / max(seconds, 1e-9))


def evaluate_model(
    model: Path,
    spec: str,
    *,
    data: dict[str, Any],
    lowercase: bool | None,
    json_path: Path | None,
    hypotheses_path: Path | None,
    samples: int,
    device: str | None,
    **options: Any,
) -> None:
    """Score a model on a test set, print a table and samples, and write JSON and translations where asked.

    Args:
        model: folder of a run, or of a checkpoint in it.
        spec: the test set.
        data: values of :class:`DataConfig` for it; languages that are None are those of the model's recipe.
        lowercase: compare lower-cased text; None: where the model's recipe lower-cases.
        json_path: of the scores.
        hypotheses_path: of the translations.
        samples: how many sentences to print.
        device: of the model; None: a GPU if there is one.
        **options: `beams`, `length_penalty`, `max_tokens`, `compound_split`, see :func:`evaluate`.

    Raises:
        ValueError: the languages are not known, or the test set is empty.
    """
    for path in filter(None, (json_path, hypotheses_path)):
        if not path.parent.is_dir():
            raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} to")
    recipe = _recipe_of(model)
    for name in ("source_lang", "target_lang"):
        data[name] = data[name] or (recipe and getattr(recipe.data, name))
        if data[name] is None:
            raise ValueError(f"{model} has no recipe.yaml: give --source-lang and --target-lang")
    config = DataConfig(**data)
    options["lowercase"] = recipe is not None and recipe.tokenizer.lowercase if lowercase is None else lowercase
    text = read_parallel(spec, config)
    if not text["source"]:
        raise ValueError(f"{spec} has no sentences")
    result = evaluate(Translator.from_pretrained(model, device), text, language=config.target_lang, **options)
    hypotheses = result.pop("hypotheses")
    console = Console()
    for row in list(zip(*text.values(), hypotheses, strict=True))[:samples]:
        for label, line in zip(("source", "reference", "translation"), row, strict=True):
            console.print(f"{label:<12} {line}", markup=False, highlight=False)
        console.print()
    table = Table(
        "metric",
        "score",
        Column("signature", overflow="fold"),
        title=f"{model} on {spec}: {result['sentences']:,} sentences",
    )
    for name, entry in result["scores"].items():
        table.add_row(name, f"{entry['score']:.2f}", entry["signature"])
    table.add_row("speed", f"{result['sentences_per_second']:.1f}", f"sentences/s, {options['beams']} beams")
    console.print(table)
    if hypotheses_path is not None:
        hypotheses_path.write_text("".join(f"{line}\n" for line in hypotheses), encoding="utf-8")
    if json_path is not None:
        record = {"model": str(model), "data": spec, **result, "options": options}
        json_path.write_text(json.dumps(record, indent=1, ensure_ascii=False), encoding="utf-8")


def describe_corpus(recipe: Recipe) -> None:
    """Prepare the data of a recipe and print sizes and examples."""
    corpus = prepare(recipe.data, recipe.tokenizer)
    table = Table("split", "pairs", "source tokens", "target tokens", "longest", title=str(corpus.directory))
    for split in SPLITS:
        lengths = list(getattr(corpus, split).lengths.values())
        longest = max(side.max(initial=0) for side in lengths)
        table.add_row(split, f"{len(lengths[0]):,}", *(f"{side.sum():,}" for side in lengths), str(longest))
    console = Console()
    console.print(table)
    for source, target in list(zip(*corpus.text["test"].values(), strict=True))[:5]:
        console.print(f"{recipe.data.source_lang}  {source}\n{recipe.data.target_lang}  {target}\n", markup=False)


def _recipe_of(model: Path) -> Recipe | None:
    """The recipe that a model was trained with: in its run folder, which may be the parent of a checkpoint."""
    found = [path for path in (model / "recipe.yaml", model.parent / "recipe.yaml") if path.is_file()]
    return load_recipe(found[0], Recipe) if found else None
