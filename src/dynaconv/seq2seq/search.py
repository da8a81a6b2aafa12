"""Beam search in a batch of sequences, and its options."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from transformers import (
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from .prefixes import ForcedPrefixes, Prefix

_LEAST = {
    "beams": 1,
    "nbest": 1,
    "max_tokens": 1,
    "no_repeat_ngram_size": 0,
    "min_length": 0,
    "max_length": 0,
}


class Hypothesis(NamedTuple):
    """A text and its score: log-probability / length ** length_penalty (length with end of sequence)."""

    text: str
    score: float


@dataclass(frozen=True)
class Search:
    """How to search.

    Args:
        beams: width of the beam; 1 is greedy search.
        length_penalty: exponent of the length in the score; above 1 favours long hypotheses.
        nbest: hypotheses per sequence, at most `beams`.
        max_tokens: batch size, source tokens x beams.
        no_repeat_ngram_size: no hypothesis has n tokens in a row that it has had before; 0: all may repeat.
        min_length: tokens before the end of sequence.
        max_length: tokens with the end of sequence; 0: twice those of the source and 20, but at most as many as the
            model's generation configuration says, or what the minimum needs, behind a prefix.

    Raises:
        ValueError: fewer beams than hypotheses wanted, a number out of bounds, or a maximum below the minimum.
    """

    beams: int = 4
    length_penalty: float = 1.0
    nbest: int = 1
    max_tokens: int = 4000
    no_repeat_ngram_size: int = 0
    min_length: int = 0
    max_length: int = 0

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number from {least}; got {value!r}")
        if self.nbest > self.beams:
            raise ValueError(f"nbest must be in 1..beams; got nbest = {self.nbest}, beams = {self.beams}")
        if not isinstance(self.length_penalty, float | int) or not math.isfinite(self.length_penalty):
            raise ValueError(f"length_penalty must be a finite number; got {self.length_penalty!r}")
        if self.no_repeat_ngram_size == 1:
            raise ValueError(
                "no_repeat_ngram_size must be 0 or 2 and more: the token that begins a hypothesis also ends it"
            )
        if self.max_length and self.max_length <= self.min_length:
            raise ValueError(f"max_length must be above min_length = {self.min_length}; got {self.max_length}")

    @classmethod
    def of(cls, model: PreTrainedModel, **given: Any) -> "Search":
        """As a model's generation configuration says, where nothing else is given (None: nothing)."""
        config: Any = model.generation_config
        said = {
            "beams": config.num_beams,
            "length_penalty": config.length_penalty,
            "no_repeat_ngram_size": config.no_repeat_ngram_size,
            "min_length": config.min_new_tokens,
        }
        if unknown := given.keys() - set(_LEAST) - {"length_penalty"}:
            raise TypeError(f"no option {', '.join(sorted(unknown))}: there are length_penalty, {', '.join(_LEAST)}")
        return cls(**{name: value for part in (said, given) for name, value in part.items() if value is not None})

    @property
    def batch_tokens(self) -> int:
        """Source tokens of a batch."""
        return self.max_tokens // self.beams


def check_room(model: Any, search: Search, prefix: Prefix) -> None:
    """ValueError where a prefix or the minimal length leaves no room for the end, or a prefix is not allowed."""
    prefix.check(search.no_repeat_ngram_size)
    limit = _limit(model, 0, len(prefix.ids), search)  # a longer source allows more
    if limit <= max(len(prefix.ids), search.min_length):
        raise ValueError(f"a hypothesis of at most {limit} tokens has no room for its prefix or minimal length")


def _limit(model: Any, source: int, prefix: int, search: Search) -> int:
    """Tokens of a hypothesis at most, for so many tokens of the source and of the prefix."""
    usual = min(2 * source + 20, model.generation_config.max_new_tokens or model.config.max_target_positions)
    limit = search.max_length or max(usual, search.min_length + 1) + prefix
    return min(limit, model.config.max_target_positions - 1)


class LengthLimits(StoppingCriteria):
    """Ends the hypotheses of every sequence at its own limit: what a sequence gives must not depend on its batch.

    Args:
        limits: [B] int64, tokens with the end of sequence.
    """

    def __init__(self, limits: torch.Tensor):
        self.limits = limits

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Whether each row is as long as it may be, [rows] bool."""
        limits = self.limits.repeat_interleave(len(input_ids) // len(self.limits))  # several beams a sequence
        return limits < input_ids.shape[1]  # the first token only starts the sequence


@torch.inference_mode()
def search_batch(
    model: Any, sources: Sequence[list[int]], prefixes: list[Prefix], tokenizers: dict[str, PreTrainedTokenizerBase],
    search: Search, continuing: torch.Tensor | None,
) -> tuple[list[list[Hypothesis]], int]:  # fmt: skip
    """The best `search.nbest` hypotheses for every sequence, best first, which do not depend on those beside it.

    Args:
        model: an encoder-decoder, in evaluation mode.
        sources: token ids.
        prefixes: of the hypotheses for each; they are part of text and score.
        tokenizers: {"source", "target"}.
        search: the options; see :func:`check_room` for what does not fit a prefix.
        continuing: [V] bool, see :func:`~dynaconv.seq2seq.prefixes.continuing_tokens`; None: all prefixes are empty.

    Returns:
        the hypotheses, and how many are cut at their maximal length.
    """
    padded = tokenizers["source"].pad({"input_ids": list(sources)}, return_tensors="pt").to(model.device)
    limits = [_limit(model, len(ids), len(prefix.ids), search) for ids, prefix in zip(sources, prefixes, strict=True)]
    stop = LengthLimits(torch.tensor(limits, device=model.device))
    forced = [] if continuing is None else [ForcedPrefixes(prefixes, continuing)]
    output = model.generate(
        **{name: padded[name] for name in ("input_ids", "attention_mask")},
        num_beams=search.beams,
        num_return_sequences=search.nbest,
        length_penalty=search.length_penalty,
        do_sample=False,
        max_new_tokens=max(limits),
        no_repeat_ngram_size=search.no_repeat_ngram_size,
        min_new_tokens=search.min_length,
        logits_processor=LogitsProcessorList(forced),
        stopping_criteria=StoppingCriteriaList([stop]),
        return_dict_in_generate=True,
        output_logits=search.beams == 1,
    )
    ended = (output.sequences[:, 1:] == model.config.eos_token_id).any(1)  # the first token, which starts, is it too
    texts = tokenizers["target"].batch_decode(output.sequences, skip_special_tokens=True)
    if search.beams > 1:
        scores = output.sequences_scores
    else:
        # Not of the scores: a model's generation configuration may suppress tokens, whose share would be lost in them.
        steps = model.compute_transition_scores(output.sequences, output.logits, normalize_logits=True)
        own = output.sequences[:, 1:] != model.config.pad_token_id  # others of the batch are longer
        scores = steps.where(own, 0).sum(1) / own.sum(1) ** search.length_penalty
    found = [Hypothesis(text, score) for text, score in zip(texts, scores.tolist(), strict=True)]
    return [found[i : i + search.nbest] for i in range(0, len(found), search.nbest)], int((~ended).sum())
