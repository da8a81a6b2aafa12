"""fairseq's options of a translation model as our configuration."""

import reprlib
from typing import Any

from ...models import LightConvConfig

_CONVOLUTIONS = {"dynamic": "dynamic", "lightweight": "lightweight"}
# What changes the network without a trace in the names and shapes of its weights, and has no place in ours.
_UNSUPPORTED = ("no_token_positional_embeddings", "adaptive_softmax_cutoff")


class Flags:
    """Options of a checkpoint with their types checked; what old versions did not have has the value of `lightconv`."""

    def __init__(self, values: dict[str, Any]):
        self.values = values

    def get(self, name: str, default: Any) -> Any:
        """The value of an option, of the type of the default, or the default where it is missing or None."""
        value = self.values.get(name)
        if value is None:
            return default
        if isinstance(default, float) and type(value) is int:
            value = float(value)
        if type(value) is not type(default):
            raise ValueError(
                f"option {name} of the checkpoint must be of type {type(default).__name__}; got {reprlib.repr(value)}"
            )
        return value

    def size(self, name: str, default: int) -> int:
        """A positive number."""
        if (value := self.get(name, default)) < 1:
            raise ValueError(f"option {name} of the checkpoint must be positive; got {value}")
        return value

    def kernels(self, side: str, default: list[int]) -> list[int]:
        """Taps of the layers of the "encoder" or "decoder"."""
        kernels = self.get(f"{side}_kernel_size_list", default)
        if not all(type(kernel) is int for kernel in kernels):
            raise ValueError(
                f"option {side}_kernel_size_list of the checkpoint must be numbers; got {reprlib.repr(kernels)}"
            )
        return kernels

    def convolution(self, side: str) -> str:
        """The mixer of the "encoder" or "decoder"."""
        kind = self.get(f"{side}_conv_type", "dynamic")
        if kind not in _CONVOLUTIONS:
            raise ValueError(
                f"option {side}_conv_type of the checkpoint must be dynamic or lightweight; got {reprlib.repr(kind)}"
            )
        return kind

    def common(self, name: str, default: Any, decoder_default: Any = None) -> Any:
        """An option that the encoder and the decoder have, and our models once."""
        encoder = self.get(f"encoder_{name}", default)
        decoder = self.get(f"decoder_{name}", encoder if decoder_default is None else decoder_default)
        if encoder != decoder:
            raise ValueError(
                f"the encoder and the decoder must have the same {name}; got {reprlib.repr(encoder)} and "
                f"{reprlib.repr(decoder)}: our models have one for both"
            )
        return encoder

    def languages(self) -> dict[str, str]:
        """{"source", "target"}: the languages, by which dictionaries are named."""
        found = {side: self.get(f"{side}_lang", "") for side in ("source", "target")}
        for side, language in found.items():
            if not language or "/" in language or "\\" in language:
                raise ValueError(
                    f"option {side}_lang of the checkpoint must be a language; got {reprlib.repr(language)}"
                )
        return found

    def sharing(self) -> str:
        """Which embeddings are one matrix, as `share_embeddings` of our configuration."""
        if self.get("share_all_embeddings", False):
            return "all"
        return "decoder" if self.get("share_decoder_input_output_embed", False) else "none"


def translation_config(flags: Flags, vocab_sizes: dict[str, int], layers: dict[str, int]) -> LightConvConfig:
    """The configuration of an encoder-decoder.

    Args:
        flags: of the checkpoint.
        vocab_sizes: {"source", "target"}: sizes of its dictionaries.
        layers: {"encoder", "decoder"}: how many layers its weights have.

    Raises:
        ValueError: another architecture, an option of another type or one that our models do not have, or sizes that
            do not fit together.
    """
    architecture = flags.get("arch", "lightconv")
    if not architecture.startswith("lightconv") or architecture.startswith("lightconv_lm"):
        raise ValueError(
            "the checkpoint must be of a translation model of the architecture lightconv; "
            f"got {reprlib.repr(architecture)}"
        )
    for name in _UNSUPPORTED:
        if flags.values.get(name):
            raise ValueError(f"our models have no {name}, which the checkpoint was trained with")
    for side, count in layers.items():
        if (expected := flags.size(f"{side}_layers", {"encoder": 7, "decoder": 6}[side])) != count:
            raise ValueError(f"the {side} must have {expected} layers as the options say; the checkpoint has {count}")
    dim, ffn = flags.common("embed_dim", 512), flags.size("encoder_ffn_embed_dim", 2048)
    attention_dropout = flags.get("attention_dropout", 0.0)
    return LightConvConfig(
        vocab_size=vocab_sizes["target"],
        source_vocab_size=vocab_sizes["source"],
        d_model=flags.size("encoder_embed_dim", dim),
        encoder_layers=layers["encoder"],
        decoder_layers=layers["decoder"],
        encoder_kernel_sizes=flags.kernels("encoder", [3, 7, 15, 31, 31, 31, 31]),
        decoder_kernel_sizes=flags.kernels("decoder", [3, 7, 15, 31, 31, 31]),
        encoder_mixer=flags.convolution("encoder"),
        decoder_mixer=flags.convolution("decoder"),
        encoder_conv_dim=flags.size("encoder_conv_dim", dim),
        decoder_conv_dim=flags.size("decoder_conv_dim", dim),
        encoder_heads=flags.size("encoder_attention_heads", 8),
        decoder_heads=flags.size("decoder_attention_heads", 8),
        encoder_ffn_dim=ffn,
        decoder_ffn_dim=flags.size("decoder_ffn_embed_dim", ffn),
        glu=bool(flags.common("glu", True, True)),
        normalize_filters=flags.get("weight_softmax", True),
        normalize_before=flags.common("normalize_before", False, False),
        position_embedding="learned" if flags.common("learned_pos", False, False) else "sinusoidal",
        share_embeddings=flags.sharing(),
        dropout=flags.get("dropout", 0.1),
        attention_dropout=attention_dropout,
        activation_dropout=flags.get("relu_dropout", 0.0),
        weight_dropout=flags.get("weight_dropout", attention_dropout),
        input_dropout=flags.get("input_dropout", 0.1),
        max_source_positions=flags.size("max_source_positions", 1024),
        max_target_positions=flags.size("max_target_positions", 1024),
    )
