"""Batches by token count."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Sampler

PAD, EOS, NO_LABEL = 1, 2, -100


class TokenBatchSampler(Sampler[list[int]]):
    """Batches of sentences of similar length, longest side x sentences at most `max_tokens`.

    The batches of an epoch, and their order, are a function of `seed` and of the epoch alone. Every epoch has the same
    number of batches.

    Args:
        source_lengths: [N] tokens of each source sentence.
        target_lengths: [N] tokens of each target sentence.
        max_tokens: cost of a batch.
        shuffle: shuffle sentences of equal length, and the order of the batches.
        seed: of the shuffling.
        multiple_of: repeat some batches, so that their number is a multiple of this (processes x accumulation).

    Raises:
        ValueError: a sentence alone is over `max_tokens`, or there is none.
    """

    def __init__(
        self,
        source_lengths: Sequence[int] | np.ndarray,
        target_lengths: Sequence[int] | np.ndarray,
        max_tokens: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        multiple_of: int = 1,
    ):
        if len(source_lengths) == 0:
            raise ValueError("there are no sentences to make batches of")
        self.target_lengths = np.asarray(target_lengths)
        self.longer_lengths = np.maximum(source_lengths, target_lengths)
        longest = self.longer_lengths.max()
        if longest > max_tokens:
            raise ValueError(
                f"a sentence has {longest} tokens but a batch may have {max_tokens}: raise train.max_tokens, or drop "
                "long sentences (of the training text: lower data.max_words)"
            )
        self.shuffle, self.seed, self.multiple_of, self.epoch = shuffle, seed, multiple_of, 0
        # Where batches begin depends on the sorted lengths only, so every epoch has the same number of them.
        self._starts = [0]
        for i, length in enumerate(np.sort(self.longer_lengths).tolist()):
            # The last sentence of a batch is the longest and sets its cost.
            if length * (i - self._starts[-1] + 1) > max_tokens:
                self._starts.append(i)

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
        """Indices by longer side, then by target length, ties in random order."""
        count = len(self.longer_lengths)
        ties = np.arange(count) if rng is None else rng.random(count)
        return np.lexsort((ties, self.target_lengths, self.longer_lengths))


class Seq2SeqCollator:
    """Pairs of token ids to a batch: `input_ids`, `attention_mask`, `decoder_input_ids`, `labels`, [B, T] int64."""

    def __call__(self, pairs: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Pad on the right; decoder inputs are the labels shifted right, starting with the end of sentence.

        Args:
            pairs: {"input_ids": [S], "labels": [T]}, integers, as from a `PairDataset`.
        """
        sources, targets = (
            [torch.from_numpy(np.asarray(pair[key], np.int64)) for pair in pairs] for key in ("input_ids", "labels")
        )
        padded = pad_sequence(targets, batch_first=True, padding_value=PAD)
        return {
            "input_ids": pad_sequence(sources, batch_first=True, padding_value=PAD),
            "attention_mask": pad_sequence([torch.ones_like(source) for source in sources], batch_first=True),
            "decoder_input_ids": torch.cat([torch.full_like(padded[:, :1], EOS), padded[:, :-1]], dim=1),
            "labels": pad_sequence(targets, batch_first=True, padding_value=NO_LABEL),
        }
