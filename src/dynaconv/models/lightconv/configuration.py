"""Configuration of the LightConv / DynamicConv encoder-decoder, and the architectures of the 2019 paper."""

from typing import Any

from transformers import PreTrainedConfig

from ..huggingface import CACHE_NAMES
from ..presets import Presets

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
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    weight_dropout: float = 0.0
    input_dropout: float = 0.1
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
        for side, kernels in (("encoder", [3, 7, 15, 31, 31, 31, 31]), ("decoder", [3, 7, 15, 31, 31, 31])):
            self._check_stack(side, kernels)
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

    def _check_stack(self, side: str, default_kernels: list[int]) -> None:
        layers, dim = getattr(self, f"{side}_layers"), getattr(self, f"{side}_conv_dim") or self.d_model
        mixer, heads = getattr(self, f"{side}_mixer"), getattr(self, f"{side}_heads")
        kernels = getattr(self, f"{side}_kernel_sizes") or default_kernels
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
        if mixer == "attention" or side == "decoder":  # cross-attention
            sizes["d_model"] = self.d_model
        for name, size in sizes.items():
            if heads < 1 or size % heads:
                raise ValueError(
                    f"{name} must be divisible by {side}_heads; got {name} = {size}, {side}_heads = {heads}"
                )
        setattr(self, f"{side}_kernel_sizes", list(kernels))
