"""Sections of recipes of encoder-decoders."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from ..data.tokenizer import TokenizerConfig
from ..models.lightconv.configuration import LightConvConfig
from ..training import recipe as training
from ..training.bounds import Count, Positive, Share
from ..training.loading import read_config
from .corpus import PairConfig

D = TypeVar("D", bound=PairConfig)
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
    folder: str | None = None
    """Go on from the trained model in this folder, with its vocabularies, instead of a preset and new weights."""

    def configuration(self, **decided: Any) -> LightConvConfig:
        """The configuration of the network.

        Args:
            **decided: what the data decides, unless the recipe says otherwise.

        Raises:
            ValueError: values that do not fit together, no such preset, or another kind of model in the folder.
            FileNotFoundError: there is no model in the folder.
        """
        said = {name: value for name, value in asdict(self).items() if value is not None}
        preset, mixer, folder = said.pop("preset"), said.pop("mixer", None), said.pop("folder", None)
        both = {"encoder_mixer": mixer, "decoder_mixer": mixer} if mixer else {}
        if folder is not None:
            config = read_config(Path(folder))
            if not isinstance(config, LightConvConfig):
                raise ValueError(f"model.folder: in {folder} is a {config.model_type}, no model that recipes train")
            return LightConvConfig.from_dict(config.to_dict() | both | said)
        return LightConvConfig.from_preset(preset, **decided | both | said)


@dataclass
class TrainConfig(training.TrainConfig):
    """Optimisation: AdamW, loss averaged over target tokens."""

    label_smoothing: Share = 0.1
    """Of the training loss; the validation loss has none."""
    eval_sentences: Count = 500
    """Validation sources for which targets are generated (greedily) and scored; 0: none."""


@dataclass
class DecodingConfig:
    """How to search with the trained model, unless a command says it: kept in the model's generation configuration."""

    beams: Positive = 4
    """Width of the beam; 1: greedy."""
    length_penalty: float = 1.0
    """Score = log-probability / length ** length_penalty."""
    no_repeat_ngram_size: Count = 0
    """No output has so many tokens in a row twice; 0: all may repeat."""
    min_length: Count = 0
    """Tokens of an output at least, without its end."""
    max_length: Positive = 512
    """Tokens of an output at most, with its end; also at most twice those of the source and 20."""


@dataclass
class PairRecipe(Generic[D]):
    """An encoder-decoder: its data, network, training and search. A task has its own data section."""

    data: D
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)

    def vocabulary(self) -> TokenizerConfig:
        """A model that it goes on with keeps its own."""
        return replace(self.tokenizer, folder=self.tokenizer.folder or self.model.folder)
