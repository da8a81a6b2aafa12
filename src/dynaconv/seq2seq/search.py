"""Beam search in batches of sequences of similar length."""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from ..data.batching import sorted_batches

logger = logging.getLogger("dynaconv")


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
        ValueError: fewer beams than hypotheses wanted, a negative size, or a maximum below the minimum.
    """

    beams: int = 4
    length_penalty: float = 1.0
    nbest: int = 1
    max_tokens: int = 4000
    no_repeat_ngram_size: int = 0
    min_length: int = 0
    max_length: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.nbest <= self.beams:
            raise ValueError(f"nbest must be in 1..beams; got nbest = {self.nbest}, beams = {self.beams}")
        if not math.isfinite(self.length_penalty):
            raise ValueError(f"length_penalty must be a finite number; got {self.length_penalty}")
        for name in ("no_repeat_ngram_size", "min_length", "max_length"):
            if (value := getattr(self, name)) < 0:
                raise ValueError(f"{name} must be 0 or more; got {value}")
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
        return cls(**{name: value for part in (said, given) for name, value in part.items() if value is not None})

    @property
    def batch_tokens(self) -> int:
        """Source tokens of a batch."""
        return self.max_tokens // self.beams


def search_sorted(
    model: PreTrainedModel,
    sources: Sequence[list[int]],
    tokenizers: dict[str, PreTrainedTokenizerBase],
    search: Search,
    prefixes: Sequence[list[int]],
) -> Iterator[tuple[int, list[Hypothesis]]]:
    """The best hypotheses for every sequence, best first, in the order in which they are found.

    What a sequence gives does not depend on those beside it. The longest come first: a lack of memory shows at once.

    Args:
        model: an encoder-decoder, in evaluation mode.
        sources: token ids.
        tokenizers: {"source", "target"}.
        search: the options.
        prefixes: token ids with which the hypotheses for each sequence begin; they are part of text and score.

    Yields:
        index of a sequence and its `search.nbest` hypotheses.

    Raises:
        ValueError: a prefix or the minimal length leaves no room for the end of sequence, or a prefix repeats what may
            not be repeated.
    """
    for prefix in prefixes:
        _check_repetitions(prefix, search.no_repeat_ngram_size)
    limits = [_limit(model, len(ids), len(prefix), search) for ids, prefix in zip(sources, prefixes, strict=True)]
    for batch in sorted_batches([len(source) for source in sources], search.batch_tokens):
        own = [sources[i] for i in batch], [prefixes[i] for i in batch], [limits[i] for i in batch]
        yield from zip(batch, _search_batch(model, *own, tokenizers, search), strict=True)


def _limit(model: Any, source: int, prefix: int, search: Search) -> int:
    """Tokens of a hypothesis at most, for so many tokens of the source and of the prefix."""
    usual = min(2 * source + 20, model.generation_config.max_new_tokens or model.config.max_target_positions)
    limit = search.max_length or max(usual, search.min_length + 1) + prefix
    limit = min(limit, model.config.max_target_positions - 1)
    if limit <= max(prefix, search.min_length):
        raise ValueError(f"a hypothesis of at most {limit} tokens has no room for its prefix or minimal length")
    return limit


def _check_repetitions(prefix: list[int], size: int) -> None:
    ngrams = [tuple(prefix[i : i + size]) for i in range(len(prefix) - size + 1)] if size else []
    if len(set(ngrams)) < len(ngrams):
        raise ValueError(f"a prefix has {size} tokens in a row twice, which no_repeat_ngram_size = {size} forbids")


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


class _Prefixes(LogitsProcessor):
    """Lets the hypotheses for every sequence begin with tokens of its own, which keep their probabilities."""

    def __init__(self, prefixes: list[list[int]], device: torch.device):
        padded = zip_longest(*prefixes, fillvalue=-1)  # a row for every step
        self.steps = [torch.tensor(row, device=device) for row in padded]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step = input_ids.shape[1] - 1  # the first token only starts the sequence
        if step >= len(self.steps):
            return scores
        forced = self.steps[step].repeat_interleave(len(scores) // len(self.steps[step]))[:, None]  # several beams
        index = forced.clamp(min=0)
        alone = torch.full_like(scores, float("-inf")).scatter(1, index, scores.gather(1, index))
        return torch.where(forced < 0, scores, alone)


@torch.inference_mode()
def _search_batch(
    model: Any, batch: list[list[int]], prefixes: list[list[int]], limits: list[int],
    tokenizers: dict[str, PreTrainedTokenizerBase], search: Search,
) -> list[list[Hypothesis]]:  # fmt: skip
    padded = tokenizers["source"].pad({"input_ids": batch}, return_tensors="pt").to(model.device)
    stop = LengthLimits(torch.tensor(limits, device=model.device))
    output = model.generate(
        **{name: padded[name] for name in ("input_ids", "attention_mask")},
        num_beams=search.beams,
        num_return_sequences=search.nbest,
        length_penalty=search.length_penalty,
        do_sample=False,
        max_new_tokens=max(limits),
        no_repeat_ngram_size=search.no_repeat_ngram_size,
        min_new_tokens=search.min_length,
        logits_processor=LogitsProcessorList([_Prefixes(prefixes, model.device)] if any(prefixes) else []),
        stopping_criteria=StoppingCriteriaList([stop]),
        return_dict_in_generate=True,
        output_logits=search.beams == 1,
    )
    ended = (output.sequences[:, 1:] == model.config.eos_token_id).any(1)  # the first token, which starts, is it too
    if cut := int((~ended).sum()):
        logger.warning("%d outputs are cut at their maximal length: see --max-length", cut)
    texts = tokenizers["target"].batch_decode(output.sequences, skip_special_tokens=True)
    if search.beams > 1:
        scores = output.sequences_scores
    else:
        # Not of the scores: a model's generation configuration may suppress tokens, whose share would be lost in them.
        steps = model.compute_transition_scores(output.sequences, output.logits, normalize_logits=True)
        own = output.sequences[:, 1:] != model.config.pad_token_id  # others of the batch are longer
        scores = steps.where(own, 0).sum(1) / own.sum(1) ** search.length_penalty
    found = [Hypothesis(text, score) for text, score in zip(texts, scores.tolist(), strict=True)]
    return [found[i : i + search.nbest] for i in range(0, len(found), search.nbest)]
