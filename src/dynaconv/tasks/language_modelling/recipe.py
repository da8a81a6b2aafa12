"""Recipes of language models."""

import dataclasses
import math
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from transformers import CONFIG_MAPPING

from ... import models as _register  # noqa: F401 (makes the Auto classes know our models)
from ...nn.shortconv import Init, Kind
from ...training import recipe as training
from ...training.bounds import Count, NotNegative, Positive, Seed, Share
from ...training.loading import read_config


@dataclass
class DataConfig:
    """Documents: where they come from, how they are split and laid into rows."""

    format: Literal["text", "tsv", "huggingface"] = "text"
    """text: files of plain text; tsv: a document per line; huggingface: a dataset, or a .jsonl or .parquet file."""
    train: str | None = None
    """text: FILE, or a pattern such as "news.en-*" (also .gz, .bz2, .xz). tsv: FILE. huggingface:
    NAME[:CONFIG][@SPLIT], or a local file or folder."""
    valid: str | None = None
    """The same for the validation set; None: held out from the training text."""
    test: str | None = None
    """The same for the test set; None: held out from the training text."""
    column: str = "text"
    """Of a dataset."""
    number: Count = 0
    """Of the column of a tsv file, counted from 0."""
    documents: Literal["line", "paragraph", "file"] = "line"
    """What a document of a text is: a line, lines up to an empty one, or a file."""
    rows: Literal["packed", "documents"] = "packed"
    """packed: documents are laid end to end, kept apart, and cut into rows of `window` tokens. documents: each is a row
    of its own, of at most `window` tokens."""
    window: Positive = 1024
    """Tokens of a row."""
    valid_size: Positive = 500
    """Documents, where they are held out."""
    test_size: Positive = 500
    """Documents, where they are held out."""
    near_duplicates: bool = False
    """Keep training documents that nearly repeat a held-out one; the held-out losses then measure memory too."""
    seed: Seed = 1
    """Of the choice of held-out documents."""


@dataclass
class TokenizerConfig:
    """The vocabulary."""

    kind: Literal["bytes", "words"] = "bytes"
    """bytes: byte-pair encoding of bytes, which has every text. words: what stands between spaces, the most frequent
    first, as in One Billion Word; others are unknown."""
    vocab_size: Positive = 8000
    """Special tokens included."""
    folder: str | None = None
    """Take the tokenizer in this folder, or of this name on the Hugging Face hub, instead of learning one."""


@dataclass
class GraftConfig:
    """Short convolutions put into a model of transformers; see :func:`dynaconv.graft`."""

    placement: str | None = None
    """Such as "qkv", any of these letters, or "all_linear"; None: no convolutions."""
    kind: Kind = "lowrank"
    """Of filters."""
    width: Positive = 4
    """Taps."""
    rank: Positive = 16
    """Of low-rank filters."""
    head_dim: Positive = 16
    """Channels that share a head-wise filter."""
    static: bool = True
    """Beside dynamic filters, a static one for each channel."""
    init: Init = "paper"
    """paper: to train from scratch. identity: the model computes what it did, to train on."""


@dataclass
class ModelConfig:
    """The network."""

    host: str = "dynaconv"
    """dynaconv (2026 paper), dynaconv_lightconv_lm (2019 paper), or a model type of transformers such as llama."""
    preset: str | None = None
    """Of the first two, such as 150m or one_billion_word."""
    config: dict[str, Any] = field(default_factory=dict)
    """Values of the model's configuration."""
    folder: str | None = None
    """Go on from the trained model in this folder, plain or grafted, and its tokenizer, instead of the three above."""
    graft: GraftConfig = field(default_factory=GraftConfig)

    def configuration(self, **decided: Any) -> Any:
        """The configuration of the network.

        Args:
            **decided: what the vocabulary decides: its size, and special tokens.

        Raises:
            ValueError: no such model, preset or value.
        """
        if self.folder is not None:
            config = read_config(Path(self.folder))
            if config.is_encoder_decoder:
                raise ValueError(f"the model in {self.folder} is an encoder-decoder, no language model")
            if getattr(config, "dynaconv", None) and self.graft.placement is not None:
                raise ValueError(f"the model in {self.folder} has short convolutions already: leave model.graft out")
            if (size := decided.get("vocab_size")) and config.get_text_config().vocab_size < size:
                known = config.get_text_config().vocab_size
                raise ValueError(f"the vocabulary has {size} tokens, the model in {self.folder} {known}")
            return config
        if self.host not in CONFIG_MAPPING:
            close = get_close_matches(self.host, CONFIG_MAPPING, n=1)
            hint = f"did you mean {close[0]}?" if close else "give a model type of transformers"
            raise ValueError(f"model.host: no {self.host!r}: {hint}")
        kind: Any = CONFIG_MAPPING[self.host]
        known = {field.name for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else None
        unknown = self.config.keys() - known if known else set()
        if known and unknown:
            name = sorted(unknown)[0]
            close = get_close_matches(name, known, n=1)
            raise ValueError(
                f"model.config: {self.host} has no {name}" + (f": did you mean {close[0]}?" if close else "")
            )
        if decided.get("vocab_size", 0) > self.config.get("vocab_size", math.inf):
            size = self.config["vocab_size"]
            raise ValueError(f"model.config.vocab_size is {size}, the vocabulary has {decided['vocab_size']} tokens")
        if self.preset is not None and not hasattr(kind, "from_preset"):
            raise ValueError(f"model.preset: {self.host} has no presets")
        try:
            if self.preset is not None:
                return kind.from_preset(self.preset, **decided | self.config)
            return kind(**decided | self.config)
        except (TypeError, AttributeError) as error:
            raise ValueError(f"model.config: {' '.join(str(error).split())}") from None


@dataclass
class TrainConfig(training.TrainConfig):
    """Optimisation: AdamW, loss averaged over tokens."""

    schedule: Literal["inverse_sqrt", "cosine", "wsd"] = "cosine"
    """After a linear warmup: lr * sqrt(warmup / step), or half a cosine down to min_learning_rate, or (warmup, stable,
    decay) the same rate until it falls to min_learning_rate in the last decay_steps."""
    adam_beta2: Share = 0.95
    """Of the second moment; that of the first is 0.9."""
    weight_decay: NotNegative = 0.1
    """Decoupled, not on norms, biases and short convolutions."""
    clip_norm: NotNegative = 1.0
    """Of the gradient; 0: no clipping."""
    average_last: Positive = 1
    """The final model is the mean of this many last checkpoints."""


@dataclass
class Recipe:
    """A language model: its data, vocabulary, network and training."""

    task: Literal["language_modelling"] = "language_modelling"
    """What the recipe trains."""
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
