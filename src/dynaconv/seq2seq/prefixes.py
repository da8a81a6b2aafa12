"""What outputs are made to begin with."""

from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from ..data.text import in_word


class Prefix(NamedTuple):
    """Whole words with which the outputs for a sequence begin."""

    ids: list[int]
    """Its tokens, none where an output may begin as it likes."""
    ends_in_word: bool
    """A token behind it could go on with its last word, instead of beginning another one."""

    @classmethod
    def of(cls, text: str, ids: list[int]) -> "Prefix":
        """A text and its tokens."""
        return cls(ids, in_word(text.rstrip()[-1:]))

    def check(self, no_repeat_ngram_size: int) -> None:
        """ValueError where it repeats what may not be repeated."""
        size = no_repeat_ngram_size
        ngrams = [tuple(self.ids[i : i + size]) for i in range(len(self.ids) - size + 1)] if size else []
        if len(set(ngrams)) < len(ngrams):
            raise ValueError(f"a prefix has {size} tokens in a row twice, which no_repeat_ngram_size = {size} forbids")


def continuing_tokens(tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """Which tokens go on with a word that stands before them, [V] bool; in scripts without spaces none does."""
    convert: Any = tokenizer.convert_tokens_to_string
    before = tokenizer.tokenize("a")
    length = len(convert(before))
    found = torch.zeros(len(tokenizer), dtype=torch.bool)
    for token, i in tokenizer.get_vocab().items():
        found[i] = in_word(convert([*before, token])[length : length + 1])
    return found


class ForcedPrefixes(LogitsProcessor):
    """Lets the hypotheses for every sequence begin with its prefix, whose tokens keep their probabilities.

    Args:
        prefixes: [B], one for each sequence.
        continuing: [V] bool, see :func:`continuing_tokens`.
    """

    def __init__(self, prefixes: list[Prefix], continuing: torch.Tensor):
        device = continuing.device
        padded = zip_longest(*(prefix.ids for prefix in prefixes), fillvalue=-1)
        self.steps = [torch.tensor(row, device=device) for row in padded]
        last = [len(prefix.ids) if prefix.ends_in_word else -1 for prefix in prefixes]
        self.last = torch.tensor(last, device=device)
        self.continuing = continuing

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The scores [rows, V] of the tokens that may come next; -inf for the others."""
        step = input_ids.shape[1] - 1  # the first token only starts the sequence
        if step > len(self.steps):
            return scores
        beams = len(scores) // len(self.last)
        ended = (self.last == step).repeat_interleave(beams)[:, None]
        scores = scores.masked_fill(ended & self.continuing, float("-inf"))
        if step == len(self.steps):
            return scores
        forced = self.steps[step].repeat_interleave(beams)[:, None]
        index = forced.clamp(min=0)
        alone = torch.full_like(scores, float("-inf")).scatter(1, index, scores.gather(1, index))
        return torch.where(forced < 0, scores, alone)
