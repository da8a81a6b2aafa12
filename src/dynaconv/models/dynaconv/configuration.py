"""Configuration of the decoder with dynamic short convolutions, and presets at the sizes of the 2026 paper."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import RopeParameters

from ...nn.recurrence import CONV_KINDS
from ...nn.shortconv import check_placement
from ..huggingface import CACHE_NAMES
from ..presets import Presets, check_dropout

MIXERS = ("attention", "mamba2", "gated_deltanet")
FFNS = ("dense", "moe")
CANON = "ABCD"  # positions of Canon layers (Allen-Zhu, "Physics of Language Models: Part 4.1", 2025)
_POSITIVE = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "conv_width",
    "conv_rank",
    "conv_head_dim",
    "mamba_head_dim",
    "mamba_state_size",
    "mamba_groups",
    "delta_head_dim",
    "chunk_size",
    "num_experts",
    "num_experts_per_tok",
)


def _sizes(hidden: int, layers: int, heads: int) -> dict[str, int]:
    """The rule of the paper's 300M model: the feed-forward size is 8/3 of the width, rounded up to 64."""
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": -(-8 * hidden // 3 // 64) * 64,
    }


# The parameter counts of the paper's 300M model (305.2M without convolutions, 306.9M, 309.3M and 336.8M with) fix its
# shape; 2b has the 1.82B parameters of the paper's. For the others the paper's shapes are not known.
PRESETS: dict[str, dict[str, Any]] = {
    "150m": {**_sizes(768, 12, 12), "delta_head_dim": 96},
    "300m": _sizes(1024, 16, 16),
    "600m": _sizes(1536, 16, 12),
    "1b": _sizes(2048, 16, 16),
    "2b": _sizes(2048, 32, 16),
    "7b-a1b": {
        **_sizes(2048, 16, 16),
        "ffn": "moe",
        "intermediate_size": 1024,
        "num_experts": 64,
        "num_experts_per_tok": 8,
    },
}


@strict
class DynaConvConfig(Presets, PreTrainedConfig):
    """Configuration of :class:`DynaConvForCausalLM`; the defaults are the paper's 300M model, convolutions included.

    Args:
        vocab_size: V.
        hidden_size: C, width of the residual stream.
        intermediate_size: hidden size of the feed-forward layers; with ffn="moe" of each expert.
        num_hidden_layers: layers.
        mixer: "attention", "mamba2" or "gated_deltanet"; one for all layers, or a list of one for each.
        ffn: "dense" (SwiGLU) or "moe" (a mixture of such experts).
        conv: filters of the short convolutions: "none", "static", or dynamic, "headwise" or "lowrank".
        placement: where they are. Any of the letters "qkv": after these projections of attention. "mixer": in the place
            of the static convolution of Mamba-2 and Gated DeltaNet. "all_linear": both of these, after the output
            projection of attention, and after every projection of dense feed-forward layers. Any of the letters "ABCD":
            the positions of Canon layers, A of what the mixer reads, B after q, k and v, C of what the feed-forward
            layer reads, D after the gate and the other half of a dense feed-forward layer. With letters, Mamba-2 and
            Gated DeltaNet keep their static convolution; with the other two and conv="none" they have none.
        conv_width: W, taps.
        conv_rank: R, for conv="lowrank".
        conv_head_dim: channels that share a filter, for conv="headwise".
        num_attention_heads: query heads.
        num_key_value_heads: key and value heads, a divisor of those; None: as many.
        head_dim: channels of a head of attention; None: hidden_size / num_attention_heads.
        qk_norm: RMS norm of the queries and keys of every head.
        rope_parameters: of transformers' rotary embeddings, of any of its types ("linear", "dynamic", "yarn",
            "longrope", "llama3"); None: "default" with base 10000.
        max_position_embeddings: tokens that the model is meant for.
        mamba_head_dim: channels of a head of Mamba-2, which has 2 C / mamba_head_dim heads.
        mamba_state_size: N of Mamba-2.
        mamba_groups: G of Mamba-2.
        delta_head_dim: channels of a key head of Gated DeltaNet, which has 3 C / 4 / delta_head_dim heads with values
            of twice as many channels.
        chunk_size: tokens that the recurrences compute at once.
        num_experts: experts, for ffn="moe".
        num_experts_per_tok: experts that each token takes.
        norm_topk_prob: make the weights of the experts taken sum to 1.
        router_aux_loss_coef: weight of the loss that balances the experts, in training.
        hidden_act: activation of the gate in feed-forward layers, "silu" for SwiGLU.
        rms_norm_eps: of all norms.
        initializer_range: standard deviation of the initial weights.
        attention_dropout: on attention probabilities.

    Raises:
        ValueError: values that do not fit together, named with what would.

    Example:
        >>> DynaConvConfig.from_preset("300m", mixer="mamba2", placement="mixer")
    """

    model_type = "dynaconv"
    presets = PRESETS
    keys_to_ignore_at_inference = list(CACHE_NAMES)  # noqa: RUF012
    attribute_map = {"num_local_experts": "num_experts"}  # noqa: RUF012

    vocab_size: int = 100352
    hidden_size: int = 1024
    intermediate_size: int = 2752
    num_hidden_layers: int = 16
    mixer: str | list[str] = "attention"
    ffn: str = "dense"
    conv: str = "lowrank"
    placement: str = "qkv"
    conv_width: int = 4
    conv_rank: int = 16
    conv_head_dim: int = 16
    num_attention_heads: int = 16
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    qk_norm: bool = False
    rope_parameters: RopeParameters | dict | None = None
    max_position_embeddings: int = 4096
    mamba_head_dim: int = 64
    mamba_state_size: int = 128
    mamba_groups: int = 1
    delta_head_dim: int = 128
    chunk_size: int = 64
    num_experts: int = 64
    num_experts_per_tok: int = 8
    norm_topk_prob: bool = False
    router_aux_loss_coef: float | int = 0.01
    hidden_act: str = "silu"
    rms_norm_eps: float | int = 1e-6
    initializer_range: float | int = 0.02
    attention_dropout: float | int = 0.0
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any):
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        self.check()
        self.head_dim = self.attention_head_dim  # transformers' rotary embeddings look for the number
        super().__post_init__(**kwargs)

    def check(self) -> None:
        """Raise ValueError where values do not fit together."""
        for name, value, choices in (("ffn", self.ffn, FFNS), ("conv", self.conv, CONV_KINDS)):
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")
        if unknown := set(self.mixers) - set(MIXERS):
            raise ValueError(f"mixer must be of {', '.join(MIXERS)}; got {', '.join(sorted(unknown))}")
        if len(self.mixers) != self.num_hidden_layers:
            raise ValueError(
                f"mixer must be one, or one for each of the {self.num_hidden_layers} layers; got {len(self.mixers)}"
            )
        check_dropout(self)
        self._check_placement()
        for name in _POSITIVE:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        sizes = []
        if "attention" in self.mixers:
            sizes.append(
                ("num_attention_heads", self.num_attention_heads, "num_key_value_heads", self.num_key_value_heads)
            )
            sizes.append(("head_dim", self.attention_head_dim, "2, for rotary embeddings", 2))
            if self.head_dim is None:
                sizes.append(("hidden_size", self.hidden_size, "num_attention_heads", self.num_attention_heads))
        if "mamba2" in self.mixers:
            sizes.append(("2 hidden_size", 2 * self.hidden_size, "mamba_head_dim", self.mamba_head_dim))
        if "gated_deltanet" in self.mixers:
            sizes.append(("3 hidden_size", 3 * self.hidden_size, "4 delta_head_dim", 4 * self.delta_head_dim))
        for name, size, of, divisor in sizes:
            if not divisor or size % divisor:
                raise ValueError(f"{name} must be divisible by {of}; got {name} = {size}, {of} = {divisor}")
        if self.ffn == "moe" and self.num_experts_per_tok > self.num_experts:
            raise ValueError(
                f"num_experts_per_tok must be at most num_experts; got {self.num_experts_per_tok}, {self.num_experts}"
            )

    @property
    def base_model_tp_plan(self) -> dict[str, str]:  # pyrefly: ignore [bad-override]
        """How tensor parallelism splits the layers, in transformers' words; convolutions and norms see all channels."""
        plan = {}
        if "attention" in self.mixers:
            plan = {f"layers.*.mixer.{name}_proj": "colwise_gather_output" for name in "qkv"}
            plan["layers.*.mixer.o_proj"] = "rowwise_split_input"
        if self.ffn == "moe":
            experts = {"experts.gate_up_proj": "packed_colwise", "experts.down_proj": "rowwise"}
            return plan | _ffn_plan({**experts, "experts": "moe_tp_experts"})
        inner, outer = "colwise", "rowwise"
        if self.convolves("all_linear", "D"):
            inner, outer = "colwise_gather_output", "rowwise_split_input"
        return plan | _ffn_plan({"gate_proj": inner, "up_proj": inner, "down_proj": outer})

    @property
    def base_model_ep_plan(self) -> dict[str, str] | None:  # pyrefly: ignore [bad-override]
        """How expert parallelism splits the layers; None: there are no experts."""
        experts = {"experts.gate_up_proj": "grouped_gemm", "experts.down_proj": "grouped_gemm"}
        return _ffn_plan({**experts, "experts": "ep_dispatch_experts"}) if self.ffn == "moe" else None

    @property
    def attention_head_dim(self) -> int:
        """Channels of a head of attention."""
        return self.hidden_size // self.num_attention_heads if self.head_dim is None else self.head_dim

    @property
    def mixers(self) -> list[str]:
        """The mixer of every layer."""
        return [self.mixer] * self.num_hidden_layers if isinstance(self.mixer, str) else self.mixer

    @property
    def canon(self) -> str:
        """The positions of Canon layers that the placement is of; none of other placements."""
        return self.placement if set(self.placement) <= set(CANON) else ""

    @property
    def conv_letters(self) -> str:
        """The projections of attention with a convolution, of q, k, v and o."""
        if self.conv == "none" or self.placement == "mixer":
            return ""
        if self.canon:
            return "qkv" if "B" in self.canon else ""
        return "qkvo" if self.placement == "all_linear" else self.placement

    def convolves(self, *places: str) -> bool:
        """Whether there are convolutions at one of some places: "all_linear", or positions of Canon layers."""
        return self.conv != "none" and any(place == self.placement or place in self.canon for place in places)

    @property
    def mixer_conv(self) -> str:
        """The convolution in Mamba-2 and Gated DeltaNet."""
        return self.conv if self.placement in ("mixer", "all_linear") else "static"

    def _check_placement(self) -> None:
        named = self.placement in ("mixer", "all_linear")
        check_placement(self.placement, ("mixer", "all_linear"), ("qkv", CANON))
        if self.conv in ("none", "static"):
            return
        if self.canon:
            somewhere = self.convolves("A", "C") or (self.convolves("B") and "attention" in self.mixers)
            if not somewhere and not (self.convolves("D") and self.ffn == "dense"):
                raise ValueError(
                    f"placement={self.placement!r} names nothing: B is for layers with attention, D for ffn='dense'"
                )
            return
        needed = {"attention"} if not named else {"mamba2", "gated_deltanet"} if self.placement == "mixer" else MIXERS
        if self.num_hidden_layers and not set(needed) & set(self.mixers):
            raise ValueError(
                f"placement={self.placement!r} names nothing: it is for layers with {' or '.join(sorted(needed))}; got "
                f"{', '.join(sorted(set(self.mixers)))}, for which there {'is qkv' if named else 'is mixer'}"
            )


def _ffn_plan(styles: dict[str, str]) -> dict[str, str]:
    return {f"layers.*.ffn.{name}": style for name, style in styles.items()}
