"""Batches by token count."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Sampler

from .arrays import TokenArrays
from .text import EOS, PAD

NO_LABEL = -100


class TokenBatchSampler(Sampler[list[int]]):
    """Batches of sequences of similar length, longest x sequences at most `max_tokens`.

    The batches of an epoch, and their order, are a function of `seed` and of the epoch alone. Every epoch has the same
    number of batches.

    Args:
        lengths: [N] tokens of each sequence; of the longest, where a row has several.
        max_tokens: cost of a batch.
        sort_keys: [N] each, the first is decisive: what sequences of equal length are sorted by.
        shuffle: shuffle sequences that are equal in all that, and the order of the batches.
        seed: of the shuffling.
        multiple_of: repeat some batches, so that their number is a multiple of this (processes x accumulation).

    Raises:
        ValueError: a sequence alone is over `max_tokens`, or there is none.
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        max_tokens: int,
        *,
        sort_keys: Sequence[np.ndarray] = (),
        shuffle: bool = True,
        seed: int = 0,
        multiple_of: int = 1,
    ):
        if len(lengths) == 0:
            raise ValueError("there are no sequences to make batches of")
        self.lengths, self.sort_keys = np.asarray(lengths), tuple(sort_keys)
        if self.lengths.max() > max_tokens:
            raise ValueError(
                f"a sequence has {self.lengths.max()} tokens but a batch may have {max_tokens}: raise max_tokens, or "
                "drop long sequences"
            )
        self.shuffle, self.seed, self.multiple_of, self.epoch = shuffle, seed, multiple_of, 0
        # Where batches begin depends on the sorted lengths only, so every epoch has the same number of them.
        self._starts = [0]
        for i, length in enumerate(np.sort(self.lengths).tolist()):
            # The last sequence of a batch is the longest and sets its cost.
            if length * (i - self._starts[-1] + 1) > max_tokens:
                self._starts.append(i)

    @classmethod
    def of(cls, arrays: TokenArrays, max_tokens: int, **options: Any) -> "TokenBatchSampler":
        """Batches of rows: the longest sequence of each counts, rows that agree in it are sorted by the last one."""
        lengths = list(arrays.lengths.values())
        return cls(np.maximum.reduce(lengths), max_tokens, sort_keys=lengths[-1:], **options)

    def set_epoch(self, epoch: int) -> None:
        """Choose the batches of another epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self._starts) // self.multiple_of) * self.multiple_of

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng([self.seed, self.epoch]) if self.shuffle else None
        batches = np.split(self._order(rng), self._starts[1:])
        sequence = np.arange(len(batches)) if rng is None else rng.permutation(len(batches))
        for i in np.resize(sequence, len(self)):
            yield batches[i].tolist()

    def _order(self, rng: np.random.Generator | None) -> np.ndarray:
        """Indices by length, then by the other keys, ties in random order."""
        count = len(self.lengths)
        ties = np.arange(count) if rng is None else rng.random(count)
        return np.lexsort((ties, *reversed(self.sort_keys), self.lengths))


def sorted_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices in batches of longest x count <= max_tokens, longest first; a longer one is a batch of its own."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= max_tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


class Seq2SeqCollator:
    """Pairs of sequences to a batch: `input_ids`, `attention_mask`, `decoder_input_ids`, `labels`, [B, T] int64."""

    def __call__(self, pairs: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Pad on the right; decoder inputs are the labels shifted right, starting with the end of sequence.

        Args:
            pairs: {"source": [S], "target": [T]}, integers, as from :class:`~dynaconv.data.arrays.TokenArrays`.
        """
        sources, targets = (
            [torch.from_numpy(np.asarray(pair[key], np.int64)) for pair in pairs] for key in ("source", "target")
        )
        padded = pad_sequence(targets, batch_first=True, padding_value=PAD)
        return {
            "input_ids": pad_sequence(sources, batch_first=True, padding_value=PAD),
            "attention_mask": pad_sequence([torch.ones_like(source) for source in sources], batch_first=True),
            "decoder_input_ids": torch.cat([torch.full_like(padded[:, :1], EOS), padded[:, :-1]], dim=1),
            "labels": pad_sequence(targets, batch_first=True, padding_value=NO_LABEL),
        }
