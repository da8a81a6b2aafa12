"""Recipes of translation models."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge

from ...seq2seq.corpus import PairConfig
from ...seq2seq.recipe import PairRecipe
from ...training.recipe import Positive


@dataclass
class DataConfig(PairConfig):
    """Parallel text: where it comes from, how it is cleaned and split."""

    source_lang: str = "de"
    target_lang: str = "en"
    max_words: Positive = 175
    """Training pairs with a longer side are dropped."""
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
        a, b = source.count(" ") + 1, target.count(" ") + 1
        if max(a, b) > self.max_words:
            return f"longer than {self.max_words} words"
        if max(a, b) > self.max_ratio * min(a, b) + 3:
            return f"sides differ by more than {self.max_ratio} x + 3 words"
        return "untranslated" if source == target and a >= 4 else None


@dataclass
class Recipe(PairRecipe[DataConfig]):
    """A translation model: its data, network, training and search."""

    task: Literal["translation"] = "translation"
    """What the recipe trains."""
    data: DataConfig = field(default_factory=DataConfig)
