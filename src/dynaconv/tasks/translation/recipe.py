"""Recipes of translation models."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ...data.tokenizer import TokenizerConfig
from ...models.lightconv.configuration import LightConvConfig
from ...training import recipe as training
from .corpus import DataConfig

_NOT_IN_RECIPES = (  # decided by the vocabulary, or of generation
    "vocab_size",
    "source_vocab_size",
    "bos_token_id",
    "pad_token_id",
    "eos_token_id",
    "decoder_start_token_id",
    "tie_word_embeddings",
    "use_cache",
)


_Fields: Any = training.model_section(LightConvConfig, leave_out=_NOT_IN_RECIPES)


@dataclass
class ModelConfig(_Fields):
    """The network: a preset, and what differs from it (None keeps the preset's value)."""

    preset: str = "lightconv_iwslt_de_en"
    """Architecture of the 2019 paper, by fairseq's name."""
    mixer: Literal["lightweight", "dynamic", "attention"] | None = None
    """Of both stacks, unless they say it themselves: lightweight or dynamic convolution, or attention."""

    def configuration(self, **decided: Any) -> LightConvConfig:
        """The configuration of the network.

        Args:
            **decided: what the data decides, unless the recipe says otherwise.

        Raises:
            ValueError: values that do not fit together, or no such preset.
        """
        said = {name: value for name, value in asdict(self).items() if value is not None}
        preset, mixer = said.pop("preset"), said.pop("mixer", None)
        both = {"encoder_mixer": mixer, "decoder_mixer": mixer} if mixer else {}
        return LightConvConfig.from_preset(preset, **decided | both | said)


@dataclass
class TrainConfig(training.TrainConfig):
    """Optimisation: Adam (betas 0.9, 0.98), loss averaged over target tokens."""

    eval_sentences: training.Count = 500
    """Validation sentences that are translated (greedily) for BLEU; 0: none."""


@dataclass
class Recipe:
    """A translation model: its data, network and training."""

    task: Literal["translation"] = "translation"
    """What the recipe trains."""
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
