"""Text from Hugging Face `datasets`: the hub, a saved dataset, or local files."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..lines import readable_file
from ..text import Text

_FILE_KINDS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}


class _Spec(NamedTuple):
    """NAME[:CONFIG][@SPLIT]."""

    name: str
    config: str | None
    split: str


def read(spec: str, columns: Mapping[str, str | int], cache: Path) -> Text:
    """Read columns of a dataset, or the entries of its column `translation`, {language: sentence}.

    Args:
        spec: NAME[:CONFIG][@SPLIT]; NAME is a dataset on the hub, a folder (also of `save_to_disk`), or a .json,
            .jsonl, .parquet or .csv file; SPLIT is `train` unless given.
        columns: {column of the result: name of the dataset's column or language}.
        cache: not used; `datasets` has its own.

    Raises:
        ValueError: `datasets` is not installed, cannot read this, or there is no such split or column.
        FileNotFoundError: no such file.
    """
    try:
        import datasets
    except ImportError:
        message = 'reading Hugging Face datasets needs the datasets package: pip install "dynaconv[datasets]"'
        raise ValueError(message) from None
    parsed = _parse(spec)
    try:
        rows = _load(datasets, parsed)
    except KeyError:
        raise ValueError(f"dataset {spec} has no split {parsed.split}: name one as NAME@SPLIT") from None
    except FileNotFoundError:
        raise
    except (ValueError, OSError, datasets.exceptions.DatasetGenerationError) as error:
        raise ValueError(f"cannot read dataset {spec}: {' '.join(str(error).split())}") from None
    found = {name: rows[name] for name in rows.column_names}
    if "translation" in found:
        pairs = list(found["translation"])
        found = {name: [pair[name] for pair in pairs] for name in (pairs[0] if pairs else ())}
    missing = sorted(str(name) for name in columns.values() if name not in found)
    if missing:
        there = ", ".join(found) or "nothing"
        raise ValueError(f"dataset {spec} has no {' and no '.join(missing)}; it has {there}: name one of these")
    return {column: [line or "" for line in found[str(name)]] for column, name in columns.items()}


def files(spec: str, columns: Mapping[str, str | int], cache: Path) -> list[Path]:
    """The files of a dataset on this machine, all those of a folder; none for a dataset on the hub."""
    path = Path(_parse(spec).name)
    if path.suffix in _FILE_KINDS:
        return [path]
    # As datasets does, into folders that are symbolic links too.
    return [Path(folder, name) for folder, _, names in os.walk(path, followlinks=True) for name in names]


def _parse(spec: str) -> _Spec:
    name, _, split = spec.partition("@")
    name, _, config = name.partition(":")
    return _Spec(name, config or None, split or "train")


def _load(datasets: Any, spec: _Spec) -> Any:
    path = Path(spec.name)
    kind = _FILE_KINDS.get(path.suffix)
    if kind:
        return datasets.load_dataset(kind, data_files=str(readable_file(path)), split=spec.split)
    if (path / "dataset_dict.json").is_file():
        return datasets.load_from_disk(spec.name)[spec.split]
    if (path / "state.json").is_file():
        return datasets.load_from_disk(spec.name)
    # The cache of datasets does not notice that a file in a folder has changed.
    mode = "force_redownload" if path.is_dir() else None
    return datasets.load_dataset(spec.name, spec.config, split=spec.split, download_mode=mode)
