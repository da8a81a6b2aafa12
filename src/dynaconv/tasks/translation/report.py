"""What the commands print: translations, tables of scores, and a description of a corpus."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from tqdm import tqdm

from ...data.lines import Line, check_folders, count_lines, located_lines, opened_path
from ...data.tokenizer import languages_of, load_tokenizers
from ...seq2seq.corpus import SIDES
from ...seq2seq.evaluation import save_evaluation, title_of
from ...seq2seq.report import describe_corpus as describe_corpus
from ...seq2seq.report import recipe_of, show_sample
from .evaluation import RESAMPLES, check_scores, compare, evaluate, tune
from .recipe import DataConfig, Recipe
from .test_sets import read_aligned, read_test_set
from .translator import Translator

PENALTIES = tuple(n / 5 for n in range(11))  # 0, 0.2, .. 2


def score_files(
    model: Path, files: Sequence[Path], *, source_column: int, target_column: int, max_tokens: int, device: str | None
) -> None:
    """Print the log-probability of the translation in each line of tab-separated columns, and its number of tokens."""
    total = count_lines(files)
    translator = Translator.from_pretrained(model, device)
    pairs = (_pair(line, source_column, target_column) for line in located_lines(files))
    for scores in translator.score_stream(pairs, progress=True, total=total, max_tokens=max_tokens):
        with tqdm.external_write_mode():
            for log_probability, tokens in scores:
                # A line and its end in one piece: a pipe takes both or, interrupted, neither.
                sys.stdout.write(f"{log_probability:.4f}\t{tokens}\n")
                sys.stdout.flush()


def _pair(line: Line | None, *columns: int) -> tuple[str, str] | None:
    if line is None:
        return None
    fields = line.text.split("\t")
    if len(fields) <= max(columns):
        raise ValueError(
            f"{line.where}: a source in column {columns[0]} and a translation in column {columns[1]} are expected, "
            f"counted from 0, with tabs between columns; got {line.text[:60]!r}"
        )
    return fields[columns[0]], fields[columns[1]]


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
    ensemble: Sequence[Path],
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
        ensemble: folders of more models.
        **options: those of the search and `compound_split`, see :func:`evaluate`.

    Raises:
        ValueError: the languages are not known, the test set is empty, or a file has another number of lines.
    """
    check_folders(json_path, hypotheses_path)
    if tuned and options.pop("length_penalty") is not None:
        raise ValueError("--tune finds the length penalty: leave --length-penalty out")
    recipe = recipe_of(model, Recipe)
    known = recipe.data.names() if recipe else languages_of(load_tokenizers(model, SIDES)["source"])
    for side in SIDES:
        name = f"{side}_lang"
        data[name] = data[name] or known.get(side)
        if data[name] is None:
            raise ValueError(f"{model} does not say its languages: give --source-lang and --target-lang")
    scoring = {
        "language": data["target_lang"],
        "lowercase": recipe is not None and recipe.tokenizer.lowercase if lowercase is None else lowercase,
    }
    check_scores(data["target_lang"])
    config = None if data["format"] == "sacrebleu" else DataConfig(**data)
    test = read_test_set(opened_path(spec), config, f"{data['source_lang']}-{data['target_lang']}", references)
    others = None if baseline is None else read_aligned(baseline, len(test.sources), spec)
    translator = Translator.from_pretrained(model, device, ensemble=ensemble)
    if tuned:
        result = tune(translator, test, PENALTIES, **scoring, **options)
    else:
        result = evaluate(translator, test, **scoring, **options)
    hypotheses = result.pop("hypotheses")
    if others is not None:
        result["comparison"] = compare(hypotheses, others, test.references, **scoring)
        scoring |= {"baseline": str(baseline), "resamples": RESAMPLES}
    console = Console()
    for source, *lines, hypothesis in list(zip(test.sources, *test.references, hypotheses, strict=True))[:samples]:
        numbered = {f"reference {n}" if n > 1 else "reference": line for n, line in enumerate(lines, 1)}
        show_sample(console, {"source": source, **numbered, "translation": hypothesis})
    console.print(_score_table(title_of(model, ensemble, spec), result))
    scoring["references"] = list(map(str, references))
    paths = {"json_path": json_path, "hypotheses_path": hypotheses_path}
    save_evaluation(result | {"options": scoring}, hypotheses, model=model, ensemble=ensemble, spec=spec, **paths)


def _score_table(title: str, result: dict[str, Any]) -> Table:
    table = Table(
        "metric", "score", Column("signature", overflow="fold"), title=f"{title}: {result['sentences']:,} sentences"
    )
    search = result["search"]
    for name, entry in result["scores"].items():
        table.add_row(name, f"{entry['score']:.2f}", entry["signature"])
    for name, entry in result.get("comparison", {}).items():
        table.add_row(
            f"{name}, baseline", f"{entry['baseline']:.2f}", f"p = {entry['p']:.3f}, paired bootstrap of {RESAMPLES}"
        )
    if penalties := result.get("length_penalties"):
        table.add_row("length penalty", f"{search['length_penalty']:.1f}", f"the best of {len(penalties)} on this set")
    table.add_row("speed", f"{result['sentences_per_second']:.1f}", f"sentences/s, {search['beams']} beams")
    return table
