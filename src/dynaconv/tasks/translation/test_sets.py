"""Test sets: sources, and one or more references for each."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...data.lines import read_all
from ...seq2seq.corpus import read_pairs
from .recipe import DataConfig


class EvaluationSet(NamedTuple):
    """Sources, and the lists of their references, of which each has one for every source."""

    sources: list[str]
    references: list[list[str]]


def read_test_set(
    spec: str, config: DataConfig | None, langpair: str, references: Sequence[Path] = ()
) -> EvaluationSet:
    """A test set with its references, and with those of more files.

    Args:
        spec: what `config` describes, or where there is none, a name of sacreBLEU's, which downloads it once.
        config: format, languages and columns.
        langpair: such as "en-de".
        references: files with another reference in each line.

    Raises:
        ValueError: there is no such test set, it is empty, or a file has another number of lines.
        FileNotFoundError: no such file.
    """
    if config is None:
        sources, given = _published(spec, langpair)
    else:
        text = read_pairs(spec, config)
        sources, given = text["source"], [text["target"]]
    if not sources:
        raise ValueError(f"{spec} has no sentences")
    return EvaluationSet(sources, [*given, *(read_aligned(path, len(sources), spec) for path in references)])


def read_aligned(path: Path, count: int, spec: str) -> list[str]:
    """The lines of a file, which has to have as many as a test set has sentences."""
    lines = read_all([path])
    if len(lines) != count:
        raise ValueError(f"{path} has {len(lines):,} lines, but {spec} has {count:,} sentences: give one line for each")
    return lines


def _published(name: str, langpair: str) -> tuple[list[str], list[list[str]]]:
    from sacrebleu.dataset import DATASETS

    if name not in DATASETS:
        known = ", ".join(sorted(known for known, dataset in DATASETS.items() if langpair in dataset.langpairs))
        raise ValueError(f"sacreBLEU has no test set {name}; for {langpair} it has {known or 'none'}")
    dataset: Any = DATASETS[name]
    if langpair not in dataset.langpairs:
        raise ValueError(f"the test set {name} is not there for {langpair}, only for {', '.join(dataset.langpairs)}")
    try:
        source, references = dataset.get_source_file(langpair), dataset.get_reference_files(langpair)
    except OSError as error:
        raise RuntimeError(
            f"the test set {name} cannot be downloaded ({error}): check the connection, or give files by --format text"
        ) from error
    sources = read_all([Path(source)])
    return sources, [read_aligned(Path(file), len(sources), name) for file in references]
