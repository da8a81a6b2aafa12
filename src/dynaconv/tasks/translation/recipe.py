"""Recipes: everything that decides what a training run does, as typed dataclasses read from YAML."""

import dataclasses
import re
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from annotated_types import Ge, Gt
from pydantic import ConfigDict, TypeAdapter, ValidationError

from ...data.config import DataConfig, TokenizerConfig

Mixer = Literal["lightweight", "dynamic", "attention"]
Positive = Annotated[int, Ge(1)]
Count = Annotated[int, Ge(0)]


@dataclasses.dataclass
class ModelConfig:
    """The network: a preset, and what differs from it (None keeps the preset's value)."""

    preset: str = "lightconv_iwslt_de_en"
    """Architecture of the 2019 paper, by fairseq's name."""
    mixer: Mixer | None = None
    """Of both stacks: lightweight or dynamic convolution, or attention."""
    encoder_mixer: Mixer | None = None
    decoder_mixer: Mixer | None = None
    d_model: int | None = None
    encoder_layers: int | None = None
    decoder_layers: int | None = None
    encoder_kernel_sizes: list[int] | None = None
    """Taps of each encoder layer, or one number for all."""
    decoder_kernel_sizes: list[int] | None = None
    encoder_heads: int | None = None
    decoder_heads: int | None = None
    encoder_conv_dim: int | None = None
    decoder_conv_dim: int | None = None
    encoder_ffn_dim: int | None = None
    decoder_ffn_dim: int | None = None
    glu: bool | None = None
    normalize_filters: bool | None = None
    normalize_before: bool | None = None
    position_embedding: Literal["sinusoidal", "learned"] | None = None
    share_embeddings: Literal["all", "decoder", "none"] | None = None
    dropout: float | None = None
    attention_dropout: float | None = None
    activation_dropout: float | None = None
    weight_dropout: float | None = None
    input_dropout: float | None = None
    max_source_positions: int | None = None
    max_target_positions: int | None = None

    def overrides(self) -> dict[str, Any]:
        """Keyword arguments for :class:`~dynaconv.models.LightConvConfig`: what differs from the preset."""
        values = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        del values["preset"]
        mixer = values.pop("mixer", None)
        return ({"encoder_mixer": mixer, "decoder_mixer": mixer} if mixer else {}) | values


@dataclasses.dataclass
class TrainConfig:
    """Optimisation: Adam (betas 0.9, 0.98), loss averaged over target tokens."""

    max_steps: Positive = 50000
    """Updates."""
    max_tokens: Positive = 4000
    """Batch size of one device: longest side x sentences is at most this."""
    accumulation: Positive = 1
    """Batches per update."""
    learning_rate: Annotated[float, Gt(0)] = 5e-4
    """At the end of the warmup."""
    schedule: Literal["inverse_sqrt", "cosine"] = "inverse_sqrt"
    """After a linear warmup: lr * sqrt(warmup / step), or half a cosine down to min_learning_rate."""
    warmup_steps: Count = 4000
    min_learning_rate: float = 0.0
    """Of the cosine schedule."""
    weight_decay: float = 0.0
    """Decoupled, not on norms and biases."""
    label_smoothing: float = 0.1
    clip_norm: float = 0.0
    """Of the gradient; 0: no clipping."""
    average_last: Positive = 10
    """The final model is the mean of this many last checkpoints."""
    save_steps: Positive = 1000
    """Updates between checkpoints."""
    eval_steps: Positive = 1000
    """Updates between evaluations on the validation set."""
    eval_sentences: Count = 500
    """Validation sentences that are translated (greedily) for BLEU; 0: none."""
    log_steps: Positive = 100
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 autocast on a GPU that has it, else fp32."""
    seed: int = 1


@dataclasses.dataclass
class Recipe:
    """A translation model: its data, network and training."""

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = dataclasses.field(default_factory=TokenizerConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)


for _section in (DataConfig, TokenizerConfig, ModelConfig, TrainConfig, Recipe):
    _section.__pydantic_config__ = ConfigDict(extra="forbid", strict=False)


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe from a YAML file.

    Raises:
        ValueError: unknown keys or values of the wrong type, each named with the keys there are.
        FileNotFoundError: no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no recipe {path}: give a YAML file, such as recipes/demo.yaml")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict | None):
        raise ValueError(f"{path} must hold sections (data, tokenizer, model, train); got a {type(content).__name__}")
    return check_recipe(content or {}, str(path))


def check_recipe(content: dict[str, Any], name: str) -> Recipe:
    """Values as a recipe.

    Raises:
        ValueError: unknown keys, or values of the wrong type or out of bounds, each named.
    """
    try:
        return TypeAdapter(Recipe).validate_python(content)
    except ValidationError as error:
        raise ValueError(f"{name}: " + "; ".join(_explain(e) for e in error.errors())) from None


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write every value of a recipe as YAML, in one step."""
    partial = path.with_suffix(".partial")
    text = yaml.safe_dump(dataclasses.asdict(recipe), sort_keys=False, allow_unicode=True)
    partial.write_text(text, encoding="utf-8")
    partial.rename(path)


def differences(old: Recipe, new: Recipe) -> list[str]:
    """What differs between two recipes, as "section.key: old -> new"."""
    a, b = dataclasses.asdict(old), dataclasses.asdict(new)
    return [f"{s}.{k}: {a[s][k]} -> {b[s][k]}" for s in a for k in a[s] if a[s][k] != b[s][k]]


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 5e-4 as a string; a recipe means the number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _explain(error: Any) -> str:
    *section, key = [str(part) for part in error["loc"]]
    name = ".".join([*section, key])
    if error["type"] != "unexpected_keyword_argument":
        return f"{name}: {error['msg'][0].lower()}{error['msg'][1:]}; got {error['input']!r}"
    known = [field.name for field in dataclasses.fields(getattr(Recipe(), section[0]) if section else Recipe)]
    close = get_close_matches(key, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
    return f"unknown key {name}: {hint}"
