"""What the commands print: translations, tables of scores, and a description of a corpus."""

import json
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from ...data.config import DataConfig
from ...data.corpus import read_parallel
from .evaluation import evaluate
from .recipe import Recipe, load_recipe
from .translator import Translator

logger = logging.getLogger("dynaconv")


def translate_files(model: Path, files: Sequence[Path], *, nbest: int, device: str | None, **options: Any) -> None:
    """Translate the lines of files, or of standard input, to standard output; see `Translator.translate`."""
    translator = Translator.from_pretrained(model, device)
    lines = list(_read_lines(files))
    started = time.perf_counter()
    for number, hypotheses in enumerate(translator.translate(lines, nbest=nbest, progress=True, **options), 1):
        for text, score in hypotheses:
            print(text if nbest == 1 else f"{number}\t{score:.4f}\t{text}")
    seconds = time.perf_counter() - started
    logger.info("%d lines in %.1f s: %.1f sentences/s", len(lines), seconds, len(lines) / max(seconds, 1e-9))


def recipe_of(model: Path) -> Recipe | None:
    """The recipe that a model was trained with: in its run folder, which may be the parent of a checkpoint."""
    found = [path for path in (model / "recipe.yaml", model.parent / "recipe.yaml") if path.is_file()]
    return load_recipe(found[0]) if found else None


def evaluate_model(
    model: Path, spec: str, data: DataConfig, *, json_path: Path | None, hypotheses_path: Path | None, samples: int,
    device: str | None, **options: Any,
) -> None:  # fmt: skip
    """Score a model on a test set, print a table and samples, and write JSON and translations where asked."""
    for path in filter(None, (json_path, hypotheses_path)):
        if not path.parent.is_dir():
            raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} to")
    text = read_parallel(spec, data)
    if not text.source:
        raise ValueError(f"{spec} has no sentences")
    result = evaluate(Translator.from_pretrained(model, device), text, language=data.target_lang, **options)
    hypotheses = result.pop("hypotheses")
    console = Console()
    for source, reference, hypothesis in list(zip(*text, hypotheses, strict=True))[:samples]:
        for label, line in (("source", source), ("reference", reference), ("translation", hypothesis)):
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
    from ...data.dataset import prepare

    corpus = prepare(recipe.data, recipe.tokenizer)
    table = Table("split", "pairs", "source tokens", "target tokens", "longest", title=str(corpus.directory))
    for split in ("train", "valid", "test"):
        dataset = getattr(corpus, split)
        source, target = dataset.source_lengths, dataset.target_lengths
        longest = max(source.max(initial=0), target.max(initial=0))
        table.add_row(split, f"{len(dataset):,}", f"{source.sum():,}", f"{target.sum():,}", str(longest))
    console = Console()
    console.print(table)
    for source, target in list(zip(*corpus.text["test"], strict=True))[:5]:
        console.print(f"{recipe.data.source_lang}  {source}\n{recipe.data.target_lang}  {target}\n", markup=False)


def _read_lines(files: Sequence[Path]) -> Iterator[str]:
    """Lines of files or standard input; bytes that are not UTF-8 are replaced, with a warning."""
    if not files and sys.stdin.isatty():
        logger.info("reading standard input, one sentence per line; end with Ctrl-D")
    for name, stream in [(str(f), f.open("rb")) for f in files] or [("standard input", sys.stdin.buffer)]:
        with stream:
            for number, raw in enumerate(stream, 1):
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8", errors="replace").rstrip("\r\n")
                if "\ufffd" in line and "\ufffd".encode() not in raw:
                    logger.warning("%s, line %d: not valid UTF-8, undecodable bytes are ignored", name, number)
                yield line.replace("\ufffd", "")
