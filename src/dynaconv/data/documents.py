"""Documents as rows of a language model: one by one, or packed behind each other and kept apart.

Dims: B batch, T tokens.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .arrays import TokenArrays
from .batching import NO_LABEL

COLUMN = "tokens"


class PackedRows(TokenArrays):
    """Documents laid end to end and cut into rows of equal length.

    Items are {"tokens": [T], "starts": [K] where documents begin in the row}. `lengths` is {"tokens": [N]}.

    Args:
        directory: where :func:`~dynaconv.data.arrays.write_tokens` wrote the column "tokens".
        split: train, valid or test.
        window: T.
        remainder: also the tokens behind the last whole row, as a shorter one.
    """

    def __init__(self, directory: Path, split: str, window: int, *, remainder: bool):
        super().__init__(directory, split, (COLUMN,))
        self._window, self._remainder = window, remainder
        total = len(self._tokens[COLUMN])
        lengths = [window] * (total // window)
        if total % window > 1 and (remainder or not lengths):
            lengths.append(total % window)
        self.lengths = {COLUMN: np.array(lengths, np.int32)}

    def __reduce__(self) -> tuple:
        directory, split, _ = self._arguments
        return partial(PackedRows, remainder=self._remainder), (directory, split, self._window)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        begin = index * self._window
        end = begin + int(self.lengths[COLUMN][index])
        first, last = np.searchsorted(self._offsets[COLUMN], [begin, end])
        return {
            COLUMN: np.array(self._tokens[COLUMN][begin:end]),
            "starts": self._offsets[COLUMN][first:last] - begin,
        }


class CausalCollator:
    """Rows to a batch: `input_ids`, `labels`, and for packed rows `position_ids`, [B, T] int64.

    Labels are the tokens themselves, as transformers shifts them in its models; the first token of a document or of a
    row has none. Positions count from the beginning of each document or row. Rows are padded behind their last token,
    which nothing before it sees.
    """

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Stack rows of :class:`PackedRows`, or of :class:`~dynaconv.data.arrays.TokenArrays`, a document each."""
        ids = [torch.from_numpy(row[COLUMN].astype(np.int64)) for row in rows]
        labels, positions = [tokens.clone() for tokens in ids], []
        for row, label in zip(rows, labels, strict=True):
            starts = np.union1d([0], row.get("starts", [])).astype(np.int64)
            label[torch.from_numpy(starts)] = NO_LABEL
            lengths = np.diff([*starts, len(label)])
            positions.append(torch.arange(len(label)) - torch.from_numpy(np.repeat(starts, lengths)))
        batch = {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=0),
            "labels": pad_sequence(labels, batch_first=True, padding_value=NO_LABEL),
        }
        if "starts" in rows[0]:
            batch["position_ids"] = pad_sequence(positions, batch_first=True, padding_value=0)
        return batch
