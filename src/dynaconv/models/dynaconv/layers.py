"""The parts of the decoder: attention, feed-forward and mixture-of-experts layers with short convolutions.

Dims: B batch, T tokens, C channels of the residual stream, H heads, D channels of a head.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, eager_attention_forward
from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock

from ...nn import GatedDeltaNet, Mamba2, ShortConvGroup, Stream
from ..huggingface import CACHE, ConvolvedLayer, TokenCounter
from .configuration import DynaConvConfig

KEPT_IN_FP32 = ("A_log", "dt_bias")  # parameters of recurrences in models of half precision


class Attention(nn.Module):
    """Causal multi-head attention, with short convolutions of queries, keys, values and the output."""

    is_causal = True

    def __init__(self, config: DynaConvConfig, layer_idx: int):
        super().__init__()
        head_dim, heads, shared = config.attention_head_dim, config.num_attention_heads, config.num_key_value_heads or 0
        self.config, self.layer_idx, self.head_dim = config, layer_idx, head_dim
        self.num_key_value_groups, self.scaling = heads // shared, head_dim**-0.5
        self.dropout = config.attention_dropout
        self.q_proj = nn.Linear(config.hidden_size, heads * head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, shared * head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, shared * head_dim, bias=False)
        self.o_proj = nn.Linear(heads * head_dim, config.hidden_size, bias=False)
        self.q_norm = nn.RMSNorm(head_dim, config.rms_norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(head_dim, config.rms_norm_eps) if config.qk_norm else nn.Identity()
        sizes = {"q": heads * head_dim, "k": shared * head_dim, "v": shared * head_dim}
        self.qkv_convs = short_convs(config, {n: d for n, d in sizes.items() if n in config.conv_letters})
        self.o_convs = short_convs(config, {"o": config.hidden_size} if "o" in config.conv_letters else {}, sizes["q"])

    def forward(
        self,
        hidden_states: Tensor,
        stream: Stream,
        *,
        attention_mask: Any,
        position_embeddings: tuple[Tensor, Tensor],
        cache: Cache | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """[B, T, C] to [B, T, C], and the attention probabilities where the implementation has them."""
        q, k, v = self.q_proj(hidden_states), self.k_proj(hidden_states), self.v_proj(hidden_states)
        q, k, v = convolve(self.qkv_convs, {"q": q, "k": k, "v": v}, hidden_states, stream)
        q, k, v = (x.unflatten(-1, (x.shape[-1] // self.head_dim, self.head_dim)).transpose(1, 2) for x in (q, k, v))
        q, k = apply_rotary_pos_emb(self.q_norm(q), self.k_norm(k), *position_embeddings)
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx)
        attend: Callable[..., tuple[Tensor, Tensor | None]] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation or "eager", eager_attention_forward
        )
        dropout = self.dropout if self.training else 0.0
        y, probabilities = attend(self, q, k, v, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs)
        y = y.flatten(2)
        (o,) = convolve(self.o_convs, {"o": self.o_proj(y)}, y, stream)
        return o, probabilities


class FeedForward(nn.Module):
    """A gated linear unit (SwiGLU), with short convolutions of its three projections."""

    def __init__(self, config: DynaConvConfig):
        super().__init__()
        dim, hidden = config.hidden_size, config.intermediate_size
        self.activation = ACT2FN[config.hidden_act]
        self.gate_proj = nn.Linear(dim, hidden, bias=False)
        self.up_proj = nn.Linear(dim, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, dim, bias=False)
        inner = {"gate": hidden, "up": hidden} if config.convolves("all_linear", "D") else {}
        self.hidden_convs = short_convs(config, inner)
        self.down_convs = short_convs(config, {"down": dim} if config.convolves("all_linear") else {}, hidden)

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        """[B, T, C] to [B, T, C]."""
        gate, up = convolve(self.hidden_convs, {"gate": self.gate_proj(x), "up": self.up_proj(x)}, x, stream)
        y = self.activation(gate) * up
        (down,) = convolve(self.down_convs, {"down": self.down_proj(y)}, y, stream)
        return down


class DynaConvLayer(GradientCheckpointingLayer):
    """A mixer and a feed-forward layer, each behind a norm and beside a residual."""

    def __init__(self, config: DynaConvConfig, layer_idx: int):
        super().__init__()
        self.layer_idx = layer_idx
        dim = config.hidden_size
        self.mixer_norm = nn.RMSNorm(dim, config.rms_norm_eps)
        self.mixer_convs = short_convs(config, {"mixer_input": dim} if config.convolves("A") else {})
        self.mixer = make_mixer(config, layer_idx)
        self.ffn_norm = nn.RMSNorm(dim, config.rms_norm_eps)
        self.ffn_convs = short_convs(config, {"ffn_input": dim} if config.convolves("C") else {})
        self.ffn = OlmoeSparseMoeBlock(config) if config.ffn == "moe" else FeedForward(config)

    def forward(self, hidden_states: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, **kwargs: Any) -> Tensor:
        """[B, T, C] to [B, T, C]; mask and cu_seqlens as :class:`Stream`, the rest for attention.

        The cache comes under the name that transformers has for it, by which activation checkpointing leaves it out.
        """
        cache = kwargs.pop(CACHE, None)
        states: Any = None if cache is None else cache.layers[self.layer_idx]
        stream = Stream(mask, cu_seqlens, states if isinstance(states, ConvolvedLayer) else None)
        x = self.mixer_norm(hidden_states)
        (x,) = convolve(self.mixer_convs, {"mixer_input": x}, x, stream)
        if isinstance(self.mixer, Attention):
            x, _ = self.mixer(x, stream, cache=cache, **kwargs)
        else:
            x = self.mixer(x, stream)
        if isinstance(states, TokenCounter):
            states.seen += hidden_states.shape[1]
        hidden_states = hidden_states + x
        x = self.ffn_norm(hidden_states)
        (x,) = convolve(self.ffn_convs, {"ffn_input": x}, x, stream)
        return hidden_states + (self.ffn(x, stream) if isinstance(self.ffn, FeedForward) else self.ffn(x))


def make_mixer(config: DynaConvConfig, layer_idx: int) -> Attention | Mamba2 | GatedDeltaNet:
    """The mixer of a layer."""
    kind, dim = config.mixers[layer_idx], config.hidden_size
    if kind == "attention":
        return Attention(config, layer_idx)
    options: Any = {
        "conv": config.mixer_conv,
        "width": config.conv_width,
        "rank": config.conv_rank,
        "conv_head_dim": config.conv_head_dim,
        "chunk_size": config.chunk_size,
        "norm_eps": config.rms_norm_eps,
    }
    if kind == "mamba2":
        mixer: Mamba2 | GatedDeltaNet = Mamba2(
            dim,
            num_heads=2 * dim // config.mamba_head_dim,
            head_dim=config.mamba_head_dim,
            state_size=config.mamba_state_size,
            n_groups=config.mamba_groups,
            **options,
        )
    else:
        heads = 3 * dim // (4 * config.delta_head_dim)
        mixer = GatedDeltaNet(
            dim,
            num_key_heads=heads,
            num_value_heads=heads,
            key_head_dim=config.delta_head_dim,
            value_head_dim=2 * config.delta_head_dim,
            **options,
        )
    for name in KEPT_IN_FP32:
        parameter = mixer.get_parameter(name)
        parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
    return mixer


def short_convs(config: DynaConvConfig, dims: dict[str, int], source: int | None = None) -> ShortConvGroup | None:
    """The convolutions of tensors of these sizes, made from an input of size `source` or C, if there are any."""
    if config.conv == "none" or not dims:
        return None
    kind: Any = config.conv
    return ShortConvGroup(
        dims,
        source or config.hidden_size,
        kind,
        width=config.conv_width,
        rank=config.conv_rank,
        head_dim=config.conv_head_dim,
    )


def convolve(
    convs: ShortConvGroup | None, tensors: dict[str, Tensor], source: Tensor, stream: Stream
) -> tuple[Tensor, ...]:
    """The tensors, those with a convolution behind it."""
    if convs is not None:
        chosen = {name: x for name, x in tensors.items() if name in convs.convs}
        tensors = tensors | convs(chosen, source, stream)
    return tuple(tensors.values())
