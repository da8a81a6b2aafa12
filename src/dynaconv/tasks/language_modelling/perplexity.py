"""Perplexity of text, of a window of tokens at a time, with or without overlap of their contexts."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from ...data.batching import oldest_first
from ...training.trainer import summed_loss


@dataclass(frozen=True)
class Prediction:
    """How well a text was predicted.

    Attributes:
        nats: minus the natural logarithm of its probability.
        tokens: that were predicted.
    """

    nats: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """For each token."""
        return self.perplexity_of(self.tokens)

    def perplexity_of(self, units: int) -> float:
        """exp(nats / units), such as words; infinite where it is too large for a number."""
        mean = self.nats / units
        return math.inf if mean > 700 else math.exp(mean)

    def bits_per(self, units: int) -> float:
        """Bits for each of `units` bytes of the text, which compares vocabularies that know all of it."""
        return self.nats / math.log(2) / units


@torch.inference_mode()
def predict(
    model: PreTrainedModel, sequences: Sequence[Sequence[int]], *, window: int, overlap: int = 0,
    max_tokens: int = 4096, progress: bool = False,
) -> Prediction:  # fmt: skip
    """Predict every token of some sequences but the first of each, from those before it in its window.

    Without overlap, the first token of a window is predicted from one alone. With it, the window moves on by `window -
    overlap` tokens, and each token but those at the beginning of a sequence has at least `overlap` of context (the
    `--context-window` of fairseq), in `window / (window - overlap)` of the time.

    Args:
        model: a causal language model, in evaluation mode.
        sequences: token ids; each begins with what is not predicted, such as the end of a sequence before.
        window: tokens at a time, at most what the model takes.
        overlap: tokens of a window that the one before has predicted, in 0..window-1.
        max_tokens: batch size; a window is never cut.
        progress: show a progress bar.

    Raises:
        ValueError: nothing to predict, or an overlap that is not below the window.
    """
    check_windows(window, overlap)
    pieces = [(ids, *piece) for ids in sequences for piece in _windows(len(ids) - 1, window, overlap)]
    if not pieces:
        raise ValueError("there is nothing to predict: every sequence needs two tokens or more")
    nats, tokens = 0.0, sum(end - first for _, _, first, end in pieces)
    with tqdm(total=tokens, unit="token", disable=not progress) as bar:
        for chosen in oldest_first(pieces, lambda piece: piece[3] - piece[1], max_tokens):
            inputs = _padded([ids[begin:end] for ids, begin, _, end in chosen], 0)
            labels = _padded(
                [[-100] * (first - begin) + list(ids[first + 1 : end + 1]) for ids, begin, first, end in chosen], -100
            )
            nats += summed_loss(model, {"input_ids": inputs.to(model.device)}, labels.to(model.device)).item()
            bar.update(int((labels != -100).sum()))
    return Prediction(nats, tokens)


def check_windows(window: int, overlap: int) -> None:
    """ValueError where windows would not move on."""
    if not 0 <= overlap < window:
        raise ValueError(f"overlap must be in 0..window-1; got overlap = {overlap}, window = {window}")


def _windows(count: int, window: int, overlap: int) -> Iterator[tuple[int, int, int]]:
    """(begin, first, end): tokens begin..end-1 predict the next ones, and those behind first.. have not been yet."""
    first = 0
    while first < count:
        end = min(count, window if first == 0 else first + window - overlap)
        yield (max(0, end - window) if overlap else first), first, end
        first = end


def _padded(rows: list[Any], value: int) -> torch.Tensor:
    tensors = [torch.tensor(row) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)
