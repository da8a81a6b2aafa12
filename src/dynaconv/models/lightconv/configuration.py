"""Configurations of the LightConv / DynamicConv networks, and the architectures of the 2019 paper."""

from itertools import pairwise
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from ..huggingface import CACHE_NAMES
from ..presets import Presets, check_dropout

MIXERS = ("lightweight", "dynamic", "attention")
SHARING = ("all", "decoder", "none")
POSITIONS = ("sinusoidal", "learned")

# fairseq's named architectures. All: 7 encoder and 6 decoder layers, post-norm, dynamic convolutions. The recipes that
# trained the published models raise the dropout of `lightconv_iwslt_de_en` to 0.3.
_BIG = {
    "d_model": 1024,
    "encoder_ffn_dim": 4096,
    "decoder_ffn_dim": 4096,
    "encoder_heads": 16,
    "decoder_heads": 16,
    "glu": True,
    "input_dropout": 0.1,
}
PRESETS: dict[str, dict[str, Any]] = {
    "lightconv_wmt_en_de": {},
    "lightconv_iwslt_de_en": {
        "encoder_ffn_dim": 1024,
        "decoder_ffn_dim": 1024,
        "encoder_heads": 4,
        "decoder_heads": 4,
        "glu": False,
        "attention_dropout": 0.1,
        "weight_dropout": 0.1,
        "input_dropout": 0.0,
        "share_embeddings": "none",
    },
    "lightconv_wmt_en_de_big": {**_BIG, "dropout": 0.3, "attention_dropout": 0.1, "weight_dropout": 0.1},
    "lightconv_wmt_en_fr_big": {**_BIG, "dropout": 0.1, "attention_dropout": 0.1, "weight_dropout": 0.1},
    "lightconv_wmt_zh_en_big": {
        **_BIG,
        "dropout": 0.2,
        "attention_dropout": 0.2,
        "weight_dropout": 0.2,
        "share_embeddings": "none",
    },
}


@strict
class LightConvConfig(Presets, PreTrainedConfig):
    """Configuration of :class:`LightConvForConditionalGeneration`; the defaults are `lightconv_wmt_en_de`.

    Args:
        vocab_size: target vocabulary, and source vocabulary unless `source_vocab_size` is given.
        source_vocab_size: source vocabulary where it differs; needs `share_embeddings` "decoder" or "none".
        d_model: width of the residual stream.
        encoder_layers: layers of the encoder.
        decoder_layers: layers of the decoder.
        encoder_kernel_sizes: taps of each encoder layer; one number is repeated.
        decoder_kernel_sizes: taps of each decoder layer; one number is repeated.
        encoder_mixer: what replaces self-attention: "dynamic" or "lightweight" convolution, or "attention" to keep it.
        decoder_mixer: the same for the decoder.
        encoder_conv_dim: channels of the encoder's convolutions; None: `d_model`.
        decoder_conv_dim: channels of the decoder's convolutions; None: `d_model`.
        encoder_heads: filters per layer, or self-attention heads, of the encoder.
        decoder_heads: the same for the decoder, and the heads of its cross-attention.
        encoder_ffn_dim: hidden size of the encoder's feed-forward layers.
        decoder_ffn_dim: hidden size of the decoder's feed-forward layers.
        glu: a gated linear unit before each convolution.
        normalize_filters: softmax over the taps.
        normalize_before: pre-norm instead of the paper's post-norm.
        position_embedding: "sinusoidal" or "learned".
        share_embeddings: "all": source, target and output share one matrix; "decoder": target and output do; "none".
        dropout: after each sublayer and on the embeddings.
        attention_dropout: on attention probabilities.
        activation_dropout: after the ReLU of the feed-forward layers.
        weight_dropout: DropConnect on the normalised filters, see :mod:`dynaconv.nn`.
        input_dropout: on the input of each convolution sublayer.
        max_source_positions: source tokens the model is meant for; a hard limit for learned positions only.
        max_target_positions: the same for the target.

    Raises:
        ValueError: values that do not fit together, named with what would.

    Example:
        >>> LightConvConfig.from_preset("lightconv_iwslt_de_en", vocab_size=10000, dropout=0.3)
    """

    model_type = "dynaconv_lightconv"
    presets = PRESETS
    keys_to_ignore_at_inference = list(CACHE_NAMES)  # noqa: RUF012
    attribute_map = {  # noqa: RUF012
        "hidden_size": "d_model",
        "num_hidden_layers": "decoder_layers",
        "num_attention_heads": "decoder_heads",
    }

    vocab_size: int = 32768
    source_vocab_size: int | None = None
    d_model: int = 512
    encoder_layers: int = 7
    decoder_layers: int = 6
    encoder_kernel_sizes: list[int] | int | None = None
    decoder_kernel_sizes: list[int] | int | None = None
    encoder_mixer: str = "dynamic"
    decoder_mixer: str = "dynamic"
    encoder_conv_dim: int | None = None
    decoder_conv_dim: int | None = None
    encoder_heads: int = 8
    decoder_heads: int = 8
    encoder_ffn_dim: int = 2048
    decoder_ffn_dim: int = 2048
    glu: bool = True
    normalize_filters: bool = True
    normalize_before: bool = False
    position_embedding: str = "sinusoidal"
    share_embeddings: str = "all"
    dropout: float | int = 0.1
    attention_dropout: float | int = 0.0
    activation_dropout: float | int = 0.0
    weight_dropout: float | int = 0.0
    input_dropout: float | int = 0.1
    max_source_positions: int = 1024
    max_target_positions: int = 1024
    use_cache: bool = True
    is_encoder_decoder: bool = True
    bos_token_id: int | None = 0
    pad_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    decoder_start_token_id: int | None = 2
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any):
        check_dropout(self)
        for side, kernels in (("encoder", [3, 7, 15, 31, 31, 31, 31]), ("decoder", [3, 7, 15, 31, 31, 31])):
            _check_stack(self, side, kernels, attends=side == "decoder")
        for name, choices in (("share_embeddings", SHARING), ("position_embedding", POSITIONS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}; got {getattr(self, name)!r}")
        for name in ("pad_token_id", "decoder_start_token_id"):
            if getattr(self, name) is None:
                raise ValueError(f"{name} must be a token of the vocabulary; got None")
        if self.share_embeddings == "all" and self.source_vocab_size not in (None, self.vocab_size):
            raise ValueError(
                f'share_embeddings="all" needs one vocabulary; got source_vocab_size = {self.source_vocab_size}, '
                f'vocab_size = {self.vocab_size}: use "decoder" or "none"'
            )
        self.tie_word_embeddings = self.share_embeddings != "none"
        super().__post_init__(**kwargs)


# The paper's model of the One Billion Word benchmark has 17 layers, 0.34 billion parameters, and words in three bands.
# It is no architecture of fairseq, whose `lightconv_lm_gbw` has 6 layers.
LM_PRESETS: dict[str, dict[str, Any]] = {
    "lightconv_lm": {},
    "lightconv_lm_gbw": {"decoder_ffn_dim": 4096, "decoder_heads": 16, "attention_dropout": 0.1, "weight_dropout": 0.1},
    "one_billion_word": {
        "vocab_size": 793472,
        "d_model": 1024,
        "decoder_layers": 17,
        "decoder_kernel_sizes": [15] * 2 + [31] * 4 + [63] * 11,
        "decoder_ffn_dim": 4096,
        "decoder_heads": 16,
        "adaptive_input_cutoffs": [60000, 160000],
        "adaptive_softmax_cutoffs": [60000, 160000],
        "tie_word_embeddings": True,
        "tie_projections": True,
    },
}


@strict
class LightConvLMConfig(Presets, PreTrainedConfig):
    """Configuration of :class:`LightConvForCausalLM`; the defaults are fairseq's `lightconv_lm`.

    Layers are pre-norm, without a norm after the last.

    Args:
        vocab_size: V, most frequent words first where input or output are adaptive.
        d_model: width of the residual stream.
        decoder_layers: number of layers.
        decoder_kernel_sizes: taps of each layer; one number is repeated.
        decoder_mixer: "dynamic" or "lightweight" convolution, or "attention".
        decoder_conv_dim: channels of the convolutions; None: `d_model`.
        decoder_heads: filters per layer, or attention heads.
        decoder_ffn_dim: hidden size of the feed-forward layers.
        glu: a gated linear unit before each convolution.
        normalize_filters: softmax over the taps.
        position_embedding: "sinusoidal" or "learned".
        adaptive_input_cutoffs: ends of the bands of words but the last, which have embeddings of fewer dimensions the
            rarer they are (Baevski and Auli 2019); None: one matrix.
        adaptive_input_factor: the dimension of band i is `d_model` // factor^i.
        adaptive_softmax_cutoffs: ends of the head and of the clusters but the last (Grave et al. 2017); None: one
            softmax.
        adaptive_softmax_factor: the dimension of cluster i is `d_model` // factor^i, from 1 on.
        adaptive_softmax_dropout: within the clusters.
        tie_word_embeddings: input and output share their matrices of words; where one of them is adaptive, so is the
            other, with the same bands.
        tie_projections: bands and clusters also share what lies between their dimension and `d_model`.
        dropout: after each sublayer and on the embeddings.
        attention_dropout: on attention probabilities.
        activation_dropout: after the ReLU of the feed-forward layers.
        weight_dropout: DropConnect on the normalised filters, see :mod:`dynaconv.nn`.
        input_dropout: on the input of each convolution sublayer.
        max_target_positions: tokens the model is meant for; a hard limit for learned positions only.

    Raises:
        ValueError: values that do not fit together, named with what would.

    Example:
        >>> LightConvLMConfig.from_preset("one_billion_word")
    """

    model_type = "dynaconv_lightconv_lm"
    presets = LM_PRESETS
    keys_to_ignore_at_inference = list(CACHE_NAMES)  # noqa: RUF012
    attribute_map = LightConvConfig.attribute_map
    normalize_before = True

    vocab_size: int = 32768
    d_model: int = 512
    decoder_layers: int = 6
    decoder_kernel_sizes: list[int] | int | None = None
    decoder_mixer: str = "dynamic"
    decoder_conv_dim: int | None = None
    decoder_heads: int = 8
    decoder_ffn_dim: int = 2048
    glu: bool = True
    normalize_filters: bool = True
    position_embedding: str = "sinusoidal"
    adaptive_input_cutoffs: list[int] | None = None
    adaptive_input_factor: float | int = 4.0
    adaptive_softmax_cutoffs: list[int] | None = None
    adaptive_softmax_factor: float | int = 4.0
    adaptive_softmax_dropout: float | int = 0.0
    tie_word_embeddings: bool = False
    tie_projections: bool = False
    dropout: float | int = 0.1
    attention_dropout: float | int = 0.0
    activation_dropout: float | int = 0.0
    weight_dropout: float | int = 0.0
    input_dropout: float | int = 0.1
    max_target_positions: int = 1024
    use_cache: bool = True
    bos_token_id: int | None = 2
    pad_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2

    def __post_init__(self, **kwargs: Any):
        check_dropout(self)
        _check_stack(self, "decoder", [3, 7, 15, 31, 31, 31], attends=False)
        if self.position_embedding not in POSITIONS:
            raise ValueError(
                f"position_embedding must be one of {', '.join(POSITIONS)}; got {self.position_embedding!r}"
            )
        for name in ("adaptive_input", "adaptive_softmax"):
            ends = [0, *(getattr(self, f"{name}_cutoffs") or []), self.vocab_size]
            factor = getattr(self, f"{name}_factor")
            if any(end <= begin for begin, end in pairwise(ends)):
                raise ValueError(f"{name}_cutoffs must rise, below vocab_size; got {ends[1:-1]}, {self.vocab_size}")
            if not factor >= 1 or any(factor**i > self.d_model for i in range(len(ends) - 1)):
                raise ValueError(
                    f"{name}_factor must be at least 1 and leave a dimension to the last of {len(ends) - 1} bands of "
                    f"d_model {self.d_model}; got {factor}"
                )
        bands = (self.adaptive_input_cutoffs, self.adaptive_input_factor)
        clusters = (self.adaptive_softmax_cutoffs, self.adaptive_softmax_factor)
        if self.tie_word_embeddings and bands != clusters:
            raise ValueError(
                "tie_word_embeddings needs the same cutoffs and factor for adaptive input and softmax; "
                f"got {bands} and {clusters}"
            )
        if self.tie_projections and not (self.tie_word_embeddings and self.adaptive_input_cutoffs):
            raise ValueError("tie_projections needs tie_word_embeddings, adaptive_input and adaptive_softmax")
        super().__post_init__(**kwargs)


def _check_stack(config: Any, side: str, default_kernels: list[int], *, attends: bool) -> None:
    """Check the sizes of an encoder or decoder, and give it a list of taps; `attends`: it has cross-attention."""
    layers, dim = getattr(config, f"{side}_layers"), getattr(config, f"{side}_conv_dim") or config.d_model
    mixer, heads = getattr(config, f"{side}_mixer"), getattr(config, f"{side}_heads")
    kernels = getattr(config, f"{side}_kernel_sizes") or default_kernels
    kernels = [kernels] if isinstance(kernels, int) else kernels
    if len(kernels) == 1:
        kernels = kernels * layers
    if mixer not in MIXERS:
        raise ValueError(f"{side}_mixer must be one of {', '.join(MIXERS)}; got {mixer!r}")
    if len(kernels) != layers:
        raise ValueError(
            f"{side}_kernel_sizes must have one number, or one for each of the {layers} {side}_layers; "
            f"got {len(kernels)}: {kernels}"
        )
    if min(kernels, default=1) < 1:
        raise ValueError(f"{side}_kernel_sizes must be at least 1; got {kernels}")
    sizes = {} if mixer == "attention" else {f"{side}_conv_dim": dim}
    if mixer == "attention" or attends:
        sizes["d_model"] = config.d_model
    for name, size in sizes.items():
        if heads < 1 or size % heads:
            raise ValueError(f"{name} must be divisible by {side}_heads; got {name} = {size}, {side}_heads = {heads}")
    setattr(config, f"{side}_kernel_sizes", list(kernels))
