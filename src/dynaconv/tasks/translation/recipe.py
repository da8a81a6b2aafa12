"""Recipes of translation models."""

import re
from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge

from ...data.text import SYLLABLES, UNSPACED
from ...seq2seq.corpus import PairConfig
from ...seq2seq.recipe import PairRecipe
from ...training.bounds import Positive

_SYLLABLE = re.compile(f"[{SYLLABLES}]")


@dataclass
class DataConfig(PairConfig):
    """Parallel text: where it comes from, how it is cleaned and split."""

    source_lang: str = "de"
    target_lang: str = "en"
    max_words: Positive = 175
    """Training pairs with a longer side are dropped. Where a side is written without spaces (Chinese, Japanese, Thai,
    ...; also Korean), six letters count as a word on both sides, and an ideograph, kana or hangul as three letters."""
    max_ratio: Annotated[float, Ge(1)] = 1.5
    """Training pairs whose sides differ more than by this factor plus 3 words are dropped."""

    def names(self) -> dict[str, str]:
        """The languages."""
        return {"source": self.source_lang, "target": self.target_lang}

    def languages(self) -> dict[str, str]:
        """Of both sides."""
        return self.names()

    def reason_to_drop(self, source: str, target: str) -> str | None:
        """Too long, of very different lengths, or untranslated: equal sides of 4 words; shorter ones may be names."""
        a, b = _lengths(source, target)
        if max(a, b) > self.max_words:
            return f"longer than {self.max_words} words"
        if max(a, b) > self.max_ratio * min(a, b) + 3:
            return f"sides differ by more than {self.max_ratio} x + 3 words"
        return "untranslated" if source == target and a >= 4 else None


def _lengths(source: str, target: str) -> tuple[float, float]:
    """Words of both sides."""
    sides = (source, target)
    if any(len(UNSPACED.findall(side)) > len(side) / 3 for side in sides):
        a, b = (len(side) + 2 * len(_SYLLABLE.findall(side)) for side in sides)
        return a / 6, b / 6
    return source.count(" ") + 1, target.count(" ") + 1


@dataclass
class Recipe(PairRecipe[DataConfig]):
    """A translation model: its data, network, training and search."""

    task: Literal["translation"] = "translation"
    """What the recipe trains."""
    data: DataConfig = field(default_factory=DataConfig)
