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

from ...data.lines import check_folders, count_lines, read_all, read_lines
from ...training.recipe import load_recipe
from .corpus import SPLITS, DataConfig, prepare
from .evaluation import RESAMPLES, compare, evaluate, tune
from .recipe import Recipe
from .test_sets import read_aligned, read_test_set
from .translator import Translator

logger = logging.getLogger("dynaconv")
PENALTIES = tuple(n / 5 for n in range(11))  # 0, 0.2, .. 2


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


def score_files(model: Path, files: Sequence[Path], *, max_tokens: int, device: str | None) -> None:
    """Print the log-probability of the translation in each line `source TAB translation`, and its number of tokens."""
    pairs: dict[str, list[str]] = {"sources": [], "targets": []}
    for number, line in enumerate(read_all(files), 1):
        source, tab, target = line.partition("\t")
        if not tab or "\t" in target:
            raise ValueError(f"line {number}: a source, a tab and a translation are expected; got {line[:60]!r}")
        pairs["sources"].append(source)
        pairs["targets"].append(target)
    translator = Translator.from_pretrained(model, device)
    for log_probability, tokens in translator.score(**pairs, progress=True, max_tokens=max_tokens):
        sys.stdout.write(f"{log_probability:.4f}\t{tokens}\n")


def evaluate_model(
    model: Path,
    spec: str,
    *,
    data: dict[str, Any],
    lowercase: bool | None,
    references: Sequence[Path],
    baseline: Path | None,
    tuned: bool,
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
        data: values of :class:`DataConfig` for it, or the format "sacrebleu"; languages that are None are those of the
            model's recipe.
        lowercase: compare lower-cased text; None: where the model's recipe lower-cases.
        references: files with more references.
        baseline: file with the translations of another system.
        tuned: take the length penalty that is the best on this set.
        json_path: of the scores.
        hypotheses_path: of the translations.
        samples: how many sentences to print.
        device: of the model; None: a GPU if there is one.
        **options: those of the search and `compound_split`, see :func:`evaluate`.

    Raises:
        ValueError: the languages are not known, the test set is empty, or a file has another number of lines.
    """
    check_folders(json_path, hypotheses_path)
    if tuned and options["beams"] == 1:
        raise ValueError("--tune needs two or more --beams: greedy search does not depend on the length penalty")
    recipe = _recipe_of(model)
    for name in ("source_lang", "target_lang"):
        data[name] = data[name] or (recipe and getattr(recipe.data, name))
        if data[name] is None:
            raise ValueError(f"{model} has no recipe.yaml: give --source-lang and --target-lang")
    scoring = {
        "language": data["target_lang"],
        "lowercase": recipe is not None and recipe.tokenizer.lowercase if lowercase is None else lowercase,
    }
    config = None if data["format"] == "sacrebleu" else DataConfig(**data)
    test = read_test_set(spec, config, f"{data['source_lang']}-{data['target_lang']}", references)
    others = None if baseline is None else read_aligned(baseline, len(test.sources), spec)
    translator = Translator.from_pretrained(model, device)
    if tuned:
        del options["length_penalty"]
        options["length_penalty"], result = tune(translator, test, PENALTIES, **scoring, **options)
    else:
        result = evaluate(translator, test, **scoring, **options)
    hypotheses = result.pop("hypotheses")
    if others is not None:
        result["comparison"] = compare(hypotheses, others, test.references, **scoring)
    console = Console()
    for source, *lines, hypothesis in list(zip(test.sources, *test.references, hypotheses, strict=True))[:samples]:
        labels = ["source", *["reference"] * len(lines), "translation"]
        for label, line in zip(labels, (source, *lines, hypothesis), strict=True):
            console.print(f"{label:<12} {line}", markup=False, highlight=False)
        console.print()
    console.print(_score_table(f"{model} on {spec}", result, options))
    if hypotheses_path is not None:
        hypotheses_path.write_text("".join(f"{line}\n" for line in hypotheses), encoding="utf-8")
    if json_path is not None:
        record = {"model": str(model), "data": spec, **result, "options": scoring | options}
        json_path.write_text(json.dumps(record, indent=1, ensure_ascii=False), encoding="utf-8")


def _score_table(title: str, result: dict[str, Any], options: dict[str, Any]) -> Table:
    table = Table(
        "metric", "score", Column("signature", overflow="fold"), title=f"{title}: {result['sentences']:,} sentences"
    )
    for name, entry in result["scores"].items():
        table.add_row(name, f"{entry['score']:.2f}", entry["signature"])
    for name, entry in result.get("comparison", {}).items():
        table.add_row(
            f"{name}, baseline", f"{entry['baseline']:.2f}", f"p = {entry['p']:.3f}, paired bootstrap of {RESAMPLES}"
        )
    if penalties := result.get("length_penalties"):
        table.add_row("length penalty", f"{options['length_penalty']:.1f}", f"the best of {len(penalties)} on this set")
    table.add_row("speed", f"{result['sentences_per_second']:.1f}", f"sentences/s, {options['beams']} beams")
    return table


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
