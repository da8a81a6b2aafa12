"""Parameters and FLOPs of a configuration, and the configuration without convolutions that costs as much.

Dims: T tokens of a sequence, C channels of the residual stream.
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.models.olmoe.modeling_olmoe import OlmoeExperts, OlmoeTopKRouter

from ...nn import DynamicShortConv, GatedDeltaNet, Mamba2, ShortConv
from ...nn.gated_deltanet import delta_rule_flops
from ...nn.mamba2 import scan_flops
from .configuration import DynaConvConfig
from .layers import Attention
from .modeling import DynaConvForCausalLM


@dataclass(frozen=True)
class Cost:
    """What a model has and does.

    Attributes:
        parameters: all of them, tied ones once.
        active_parameters: those that a token meets: with experts, only as many as it takes.
        flops: forward FLOPs per token in a sequence of T tokens, by part: "projections" (linear layers of the mixers),
            "attention" (scores and values, for all pairs of tokens, as PyTorch's FlopCounterMode counts),
            "recurrence", "feed_forward", "convolutions" (short convolutions and what makes their filters), "output".
        forward_flops: their sum.
    """

    parameters: int
    active_parameters: int
    flops: dict[str, float]

    @property
    def forward_flops(self) -> float:
        """FLOPs per token of a forward pass; forward and backward take about three times as many."""
        return sum(self.flops.values())

    def __str__(self) -> str:
        lines = [("parameters", self.parameters / 1e6, "M"), ("active", self.active_parameters / 1e6, "M")]
        lines += [(part, number / 1e6, "MFLOP per token") for part, number in self.flops.items() if number]
        lines.append(("forward pass", self.forward_flops / 1e6, "MFLOP per token"))
        return "\n".join(f"{name:<14} {number:>12,.3f} {unit}" for name, number, unit in lines)


def count(config: DynaConvConfig, tokens: int) -> Cost:
    """Parameters of a configuration and forward FLOPs per token in sequences of `tokens` tokens.

    A product of [M, K] and [K, N] has 2 M N K FLOPs; what is no product of matrices or convolution is not counted. The
    sum is that of PyTorch's FlopCounterMode.

    Raises:
        TypeError: not a :class:`DynaConvConfig`.
        ValueError: `tokens` is not at least 1.
    """
    if not isinstance(config, DynaConvConfig):
        raise TypeError(f"config must be a DynaConvConfig; got {type(config).__name__}")
    if tokens < 1:
        raise ValueError(f"tokens must be at least 1; got {tokens}")
    with torch.device("meta"):
        model = DynaConvForCausalLM(deepcopy(config))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    idle = sum(p.numel() for m in model.modules() if isinstance(m, OlmoeExperts) for p in m.parameters())
    idle = idle // config.num_experts * (config.num_experts - config.num_experts_per_tok)
    flops = dict.fromkeys(("projections", "attention", "recurrence", "feed_forward", "convolutions", "output"), 0.0)
    for name, module in model.named_modules():
        flops[_part(name)] += _flops(config, module)
    for layer in model.model.layers:
        part = "attention" if isinstance(layer.mixer, Attention) else "recurrence"
        flops[part] += _mixing_flops(config, layer.mixer, tokens)
    return Cost(parameters, parameters - idle, flops)


def compute_matched(config: DynaConvConfig, tokens: int) -> DynaConvConfig:
    """The baseline of a configuration: without convolutions, feed-forward layers so much wider that it costs as much.

    The paper compares at matched compute. The forward FLOPs per token of the two differ by at most half of what one
    more channel of the feed-forward layers costs. Recurrent mixers have their static convolution in it; beside a
    configuration without any it is narrower.

    Args:
        config: with convolutions.
        tokens: T, at which the two are matched.
    """
    plain = _changed(config, conv="none", placement="qkv")
    cost, base = count(config, tokens).forward_flops, count(plain, tokens).forward_flops
    wider = _changed(plain, intermediate_size=config.intermediate_size + 1)
    step = count(wider, tokens).forward_flops - base
    return _changed(plain, intermediate_size=config.intermediate_size + round((cost - base) / step))


def _changed(config: DynaConvConfig, **values: Any) -> DynaConvConfig:
    return type(config).from_dict({**config.to_dict(), **values})


def _part(name: str) -> str:
    if "conv" in name:
        return "convolutions"
    return "output" if name == "lm_head" else "feed_forward" if ".ffn" in name else "projections"


def _flops(config: DynaConvConfig, module: nn.Module) -> float:
    """FLOPs per token of a module without its children."""
    if isinstance(module, nn.Linear):
        return 2 * module.in_features * module.out_features
    if isinstance(module, OlmoeTopKRouter):
        return 2 * module.weight.numel()
    if isinstance(module, OlmoeExperts):
        return 2 * 3 * config.num_experts_per_tok * config.hidden_size * config.intermediate_size
    if isinstance(module, ShortConv):
        return 2 * module.dim * module.width
    if isinstance(module, DynamicShortConv):
        made = 0 if module.basis is None else 2 * module.rank
        return (made + (2 if module.static is None else 3)) * module.dim * module.width
    return 0


def _mixing_flops(config: DynaConvConfig, mixer: nn.Module, tokens: int) -> float:
    """FLOPs per token of what a mixer does besides its linear layers."""
    if isinstance(mixer, Mamba2):
        heads, sizes = mixer.num_heads, (config.mamba_head_dim, config.mamba_state_size, config.mamba_groups)
        return scan_flops(1, tokens, heads, *sizes, config.chunk_size) / tokens
    if isinstance(mixer, GatedDeltaNet):
        heads, sizes = (mixer.num_heads, mixer.num_heads), (mixer.key_head_dim, mixer.value_head_dim)
        return delta_rule_flops(1, tokens, *heads, *sizes, config.chunk_size) / tokens
    return 2 * 2 * tokens * config.num_attention_heads * config.attention_head_dim
