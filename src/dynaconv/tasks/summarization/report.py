"""What `dynaconv summarize` and `dynaconv evaluate` print."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from ...data.lines import check_folders, opened_path
from ...data.text import Text
from ...seq2seq.corpus import read_pairs
from ...seq2seq.evaluation import generate_timed, save_evaluation, title_of
from ...seq2seq.report import describe_corpus as describe_corpus
from ...seq2seq.report import recipe_of, show_sample
from .evaluation import first_sentences, first_words, rouge
from .recipe import DataConfig, Recipe
from .summarizer import Summarizer


def evaluate_model(
    model: Path,
    spec: str,
    *,
    data: dict[str, Any],
    lead: int,
    json_path: Path | None,
    hypotheses_path: Path | None,
    samples: int,
    device: str | None,
    ensemble: Sequence[Path],
    **search: Any,
) -> None:
    """Score a model on a test set beside its documents' beginnings, print a table and samples, and write files.

    Args:
        model: folder of a run, or of a checkpoint in it.
        spec: the test set.
        data: values of :class:`DataConfig` for it; names that are None are those of the model's recipe.
        lead: sentences with which each document is summarized for comparison.
        json_path: of the scores.
        hypotheses_path: of the summaries.
        samples: how many documents to print.
        device: of the model; None: a GPU if there is one.
        ensemble: folders of more models.
        **search: see :meth:`Summarizer.generate`.

    Raises:
        ValueError: the test set is empty or cannot be read.
    """
    check_folders(json_path, hypotheses_path)
    recipe = recipe_of(model, Recipe)
    defaults = recipe.data if recipe else DataConfig()
    said = {name: getattr(defaults, name) if value is None else value for name, value in data.items()}
    text = read_pairs(opened_path(spec), DataConfig(**said))
    if not text["source"]:
        raise ValueError(f"{spec} has no documents")
    result = generate_timed(Summarizer.from_pretrained(model, device, ensemble=ensemble), text["source"], **search)
    hypotheses = result.pop("hypotheses")
    scores = {"model": rouge(hypotheses, text["target"], progress=True)} | _baselines(text, lead)
    console = Console()
    for document, reference, summary in list(zip(*text.values(), hypotheses, strict=True))[:samples]:
        show_sample(console, {"document": document, "reference": reference, "summary": summary})
    metrics = list(scores["model"])
    title = f"{title_of(model, ensemble, spec)}: {result['sentences']:,} documents"
    table = Table("ROUGE F1", *(Column(name, justify="right") for name in metrics), title=title)
    for name, found in scores.items():
        cells = (f"{entry['score']:.2f} ({entry['low']:.2f} to {entry['high']:.2f})" for entry in found.values())
        table.add_row(name, *cells)
    console.print(table)
    console.print(f"{scores['model'][metrics[-1]]['signature']}\n{result['sentences_per_second']:.1f} documents/s")
    paths = {"json_path": json_path, "hypotheses_path": hypotheses_path}
    save_evaluation({"scores": scores, **result}, hypotheses, model=model, ensemble=ensemble, spec=spec, **paths)


def _baselines(text: Text, lead: int) -> dict[str, dict[str, Any]]:
    words = round(sum(len(summary.split()) for summary in text["target"]) / len(text["target"]))
    sentences = "first sentence" if lead == 1 else f"first {lead} sentences"
    return {
        sentences: rouge(first_sentences(text["source"], lead), text["target"]),
        f"first {words} words": rouge(first_words(text["source"], words), text["target"]),
    }
