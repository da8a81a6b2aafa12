"""Recipes of summarization models."""

from dataclasses import dataclass, field
from typing import Literal

from ...seq2seq.corpus import PairConfig
from ...seq2seq.recipe import PairRecipe
from ...training.bounds import Positive


@dataclass
class DataConfig(PairConfig):
    """Documents with their summaries: where they come from, how they are cut and split."""

    source_name: str = "article"
    """The documents: ending of their file, or column of their dataset."""
    target_name: str = "highlights"
    """The summaries: the same."""
    max_source_tokens: Positive = 400
    """Documents are cut behind so many, in training and by the trained model."""
    max_target_tokens: Positive = 400
    """Summaries that are trained on are cut behind so many."""

    def names(self) -> dict[str, str]:
        """Of documents and summaries."""
        if self.format == "debian":
            raise ValueError("data.format debian is for translation: set it to tsv, text or huggingface")
        return {"source": self.source_name, "target": self.target_name}

    def limits(self) -> dict[str, int | None]:
        """Tokens of documents and summaries."""
        return {"source": self.max_source_tokens, "target": self.max_target_tokens}

    def usual_lengths(self) -> dict[str, int]:
        """Documents are as long as they may be, summaries as those of news (56 words)."""
        return {"source": self.max_source_tokens, "target": min(64, self.max_target_tokens)}


@dataclass
class Recipe(PairRecipe[DataConfig]):
    """A summarization model: its data, network, training and search."""

    task: Literal["summarization"] = "summarization"
    """What the recipe trains."""
    data: DataConfig = field(default_factory=DataConfig)
