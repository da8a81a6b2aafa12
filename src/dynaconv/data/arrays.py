"""Token ids of many rows as memory-mapped arrays."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset


class TokenArrays(Dataset):
    """Rows of token ids in named columns, read from memory-mapped arrays.

    Items are {column: [T]}, in the dtype in which they were written. `lengths` is {column: [N] int32}.

    Args:
        directory: where :func:`write_tokens` wrote.
        split: train, valid or test.
        columns: their names.

    Raises:
        ValueError: a file that was cut off.
    """

    def __init__(self, directory: Path, split: str, columns: Iterable[str]):
        self._arguments = directory, split, tuple(columns)
        paths = {column: directory / f"{split}.{column}" for column in self._arguments[2]}
        self._tokens = {column: _read(path.with_name(f"{path.name}.npy")) for column, path in paths.items()}
        self._offsets = {column: _read(path.with_name(f"{path.name}.offsets.npy")) for column, path in paths.items()}
        self.lengths = {column: np.diff(offsets).astype(np.int32) for column, offsets in self._offsets.items()}

    def __reduce__(self) -> tuple:
        # Pickled, a memory map would become a copy of the corpus in every spawned worker.
        return TokenArrays, self._arguments

    def __len__(self) -> int:
        return len(next(iter(self.lengths.values())))

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        bounds = {column: offsets[index : index + 2] for column, offsets in self._offsets.items()}
        return {column: np.array(self._tokens[column][start:end]) for column, (start, end) in bounds.items()}


def _read(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r")
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete {path.parent}, which is then made anew") from None


def write_tokens(directory: Path, split: str, column: str, tokens: np.ndarray, lengths: list[int]) -> None:
    """Write a column: [sum of lengths] tokens of all rows one after the other, and [N] lengths."""
    np.save(directory / f"{split}.{column}.npy", tokens)
    np.save(directory / f"{split}.{column}.offsets.npy", np.cumsum([0, *lengths], dtype=np.int64))
