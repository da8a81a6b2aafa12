"""What the commands print: translations, tables of scores, and a description of a corpus."""

import json
import logging
import os
import select
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ...data.config import DataConfig
from ...data.corpus import read_parallel
from .evaluation import evaluate
from .recipe import Recipe, load_recipe
from .translator import Translator

logger = logging.getLogger("dynaconv")


def translate_files(model: Path, files: Sequence[Path], *, nbest: int, device: str | None, **options: Any) -> None:
    """Translate the lines of files, or of standard input, to standard output; see `Translator.stream`.

    Lines are written as soon as they are complete, so that an interruption leaves a prefix of the output.
    """
    translator = Translator.from_pretrained(model, device)
    started, number = time.perf_counter(), 0
    with logging_redirect_tqdm():
        lines, total = _read_lines(files), _count_lines(files)
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


def _count_lines(files: Sequence[Path]) -> int | None:
    """How many lines there are; None where they can be read only once, from standard input or a pipe."""
    if not files or not all(path.is_file() for path in files):
        return None
    count = 0
    for path in files:
        with path.open("rb") as stream:
            count += sum(1 for _ in stream)
    return count


def _read_lines(files: Sequence[Path]) -> Iterator[str | None]:
    """Lines of files or standard input, None where more are to come but not yet.

    Bytes that are not UTF-8 are left out, with a warning.
    """
    if not files and sys.stdin.isatty():
        logger.info("reading standard input, one sentence per line; end with Ctrl-D")
    with ExitStack() as stack:
        sources: list[tuple[str, Iterable[bytes | None]]] = [
            (str(path), stack.enter_context(path.open("rb"))) for path in files
        ]
        for name, stream in sources or [("standard input", _arriving_lines(sys.stdin.fileno()))]:
            number = 0
            for raw in stream:
                if raw is None:
                    yield None
                    continue
                number += 1
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8", errors="replace").rstrip("\r\n")
                if "\ufffd" in line and "\ufffd".encode() not in raw:
                    logger.warning("%s, line %d: not valid UTF-8, undecodable bytes are ignored", name, number)
                yield line.replace("\ufffd", "")


def _arriving_lines(descriptor: int) -> Iterator[bytes | None]:
    """Lines of a file, a pipe or a terminal; None where none has come for a tenth of a second."""
    rest: list[bytes] = []
    while True:
        # Windows waits for sockets only.
        if os.name == "posix" and not select.select([descriptor], [], [], 0.1)[0]:
            yield None
            select.select([descriptor], [], [])
        chunk = os.read(descriptor, 1 << 16)
        if not chunk:
            break
        *lines, last = chunk.split(b"\n")
        for line in lines:
            yield b"".join([*rest, line])
            rest = []
        rest.append(last)
    if any(rest):
        yield b"".join(rest)
