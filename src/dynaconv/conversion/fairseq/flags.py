"""fairseq's options of a model as our configuration."""

import re
import reprlib
from typing import Any

from ...models import LightConvConfig, LightConvLMConfig

_CONVOLUTIONS = ("dynamic", "lightweight")
# What changes the network without a trace in the names and shapes of its weights, and has no place in ours.
_UNSUPPORTED = ("no_token_positional_embeddings", "character_embeddings")
_LARGEST = 1 << 20  # so that no product of sizes overflows


class Flags:
    """Options of a checkpoint with their types checked; what old versions did not have has the value of `lightconv`."""

    def __init__(self, values: dict[str, Any]):
        self.values = values

    def get(self, name: str, default: Any) -> Any:
        """The value of an option, of the type of the default, or the default where it is missing or None."""
        value = self.values.get(name)
        if value is None:
            return default
        fits = isinstance(default, float) or (isinstance(default, bool) and value in (0, 1))
        if fits and type(value) is int and abs(value) <= _LARGEST:
            value = type(default)(value)
        if type(value) is not type(default):
            raise ValueError(
                f"option {name} of the checkpoint must be of type {type(default).__name__}; got {reprlib.repr(value)}"
            )
        return value

    def size(self, name: str, default: int) -> int:
        """A number of something."""
        value = self.get(name, default)
        if not 1 <= value <= _LARGEST:
            raise ValueError(f"option {name} of the checkpoint must be from 1 to {_LARGEST}; got {reprlib.repr(value)}")
        return value

    def kernels(self, side: str, default: list[int], layers: int) -> list[int]:
        """Taps of the layers of the "encoder" or "decoder"."""
        kernels = self.get(f"{side}_kernel_size_list", default)
        whole = all(type(kernel) is int and 1 <= kernel <= _LARGEST for kernel in kernels)
        if not whole or len(kernels) not in (1, layers):
            raise ValueError(
                f"option {side}_kernel_size_list of the checkpoint must be one number, or one for each of {layers} "
                f"layers; got {reprlib.repr(kernels)}"
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
        """An option that the encoder and the decoder have, and our models once.

        Args:
            name: without the side.
            default: where the encoder does not have it.
            decoder_default: where the decoder does not have it; None: the encoder's value.
        """
        encoder = self.get(f"encoder_{name}", default)
        decoder = self.get(f"decoder_{name}", encoder if decoder_default is None else decoder_default)
        if encoder != decoder:
            raise ValueError(
                f"the encoder and the decoder must have the same {name}; got {reprlib.repr(encoder)} and "
                f"{reprlib.repr(decoder)}: our models have one for both"
            )
        return encoder

    def cutoffs(self, name: str) -> list[int] | None:
        """Ends of bands of words, which fairseq has as text."""
        text = self.get(name, "")
        if text and not re.fullmatch(r"[\[(]?\d{1,9}(, *\d{1,9})*[\])]?", text):
            raise ValueError(f"option {name} of the checkpoint must be numbers; got {reprlib.repr(text)}")
        return [int(number) for number in re.findall(r"\d+", text)] or None

    def is_language_model(self) -> bool:
        """Whether it is a decoder on its own; raises ValueError where it is no model of ours at all."""
        architecture = self.get("arch", "lightconv")
        if not architecture.startswith("lightconv"):
            raise ValueError(f"the checkpoint must be of the architecture lightconv; got {reprlib.repr(architecture)}")
        for name in _UNSUPPORTED:
            if self.values.get(name):
                raise ValueError(f"our models have no {name}, which the checkpoint was trained with")
        return architecture.startswith("lightconv_lm")

    def layers(self, side: str, default: int, found: int) -> int:
        """Layers of the "encoder" or "decoder", of which the checkpoint has so many."""
        if (expected := self.size(f"{side}_layers", default)) != found:
            raise ValueError(f"the {side} must have {expected} layers as the options say; the checkpoint has {found}")
        return found

    def dropouts(self) -> dict[str, Any]:
        """All rates of dropout, by our names."""
        attention = self.get("attention_dropout", 0.0)
        return {
            "dropout": self.get("dropout", 0.1),
            "attention_dropout": attention,
            "activation_dropout": self.get("relu_dropout", 0.0),
            "weight_dropout": self.get("weight_dropout", attention),
            "input_dropout": self.get("input_dropout", 0.1),
        }

    def languages(self) -> dict[str, str]:
        """{"source", "target"}: the languages, by which dictionaries are named."""
        found = {side: self.get(f"{side}_lang", "") for side in ("source", "target")}
        for side, language in found.items():
            if not re.fullmatch(r"[\w.+@-]{1,100}", language):
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
        ValueError: an option of another type or one that our models do not have, or sizes that do not fit together.
    """
    if flags.values.get("adaptive_softmax_cutoff"):
        raise ValueError("our translation models have no adaptive_softmax, which the checkpoint was trained with")
    dim, ffn = flags.common("embed_dim", 512), flags.size("encoder_ffn_embed_dim", 2048)
    return LightConvConfig(
        vocab_size=vocab_sizes["target"],
        source_vocab_size=vocab_sizes["source"],
        d_model=flags.size("encoder_embed_dim", dim),
        encoder_layers=flags.layers("encoder", 7, layers["encoder"]),
        decoder_layers=flags.layers("decoder", 6, layers["decoder"]),
        encoder_kernel_sizes=flags.kernels("encoder", [3, 7, 15, 31, 31, 31, 31], layers["encoder"]),
        decoder_kernel_sizes=flags.kernels("decoder", [3, 7, 15, 31, 31, 31], layers["decoder"]),
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
        **flags.dropouts(),
        max_source_positions=flags.size("max_source_positions", 1024),
        max_target_positions=flags.size("max_target_positions", 1024),
    )


def language_model_config(flags: Flags, vocab_size: int, layers: dict[str, int]) -> LightConvLMConfig:
    """The configuration of a language model.

    Args:
        flags: of the checkpoint.
        vocab_size: of its dictionary.
        layers: {"decoder"}: how many layers its weights have.

    Raises:
        ValueError: as :func:`translation_config`.
    """
    dim, factor = flags.size("decoder_embed_dim", 512), flags.get("adaptive_softmax_factor", 4.0)
    adaptive = flags.get("adaptive_input", False)
    tied = "tie_adaptive_weights" if adaptive else "share_decoder_input_output_embed"
    cutoffs = flags.cutoffs("adaptive_input_cutoff") if adaptive else None
    return LightConvLMConfig(
        vocab_size=vocab_size,
        d_model=dim,
        decoder_layers=flags.layers("decoder", 6, layers["decoder"]),
        decoder_kernel_sizes=flags.kernels("decoder", [3, 7, 15, 31, 31, 31], layers["decoder"]),
        decoder_mixer=flags.convolution("decoder"),
        decoder_conv_dim=flags.size("decoder_conv_dim", dim),
        decoder_heads=flags.size("decoder_attention_heads", 8),
        decoder_ffn_dim=flags.size("decoder_ffn_embed_dim", 2048),
        glu=flags.get("decoder_glu", True),
        normalize_filters=flags.get("weight_softmax", True),
        position_embedding="learned" if flags.get("decoder_learned_pos", False) else "sinusoidal",
        adaptive_input_cutoffs=cutoffs,
        adaptive_input_factor=flags.get("adaptive_input_factor", 4.0) if adaptive else factor,
        adaptive_softmax_cutoffs=flags.cutoffs("adaptive_softmax_cutoff"),
        adaptive_softmax_factor=factor,
        adaptive_softmax_dropout=flags.get("adaptive_softmax_dropout", 0.0),
        tie_word_embeddings=flags.get(tied, False),
        tie_projections=adaptive and flags.get("tie_adaptive_proj", False),
        **flags.dropouts(),
        max_target_positions=flags.size("max_target_positions", flags.size("tokens_per_sample", 1024)),
    )
