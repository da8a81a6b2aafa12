"""The parts of the LightConv / DynamicConv networks (Wu et al. 2019; layout as in fairseq's `lightconv` model).

Dims: B batch, T tokens, S source tokens, E d_model, D channels of the convolution, W taps.
"""

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, EncoderDecoderCache
from transformers.cache_utils import DynamicLayer
from transformers.modeling_layers import GradientCheckpointingLayer

from ...nn import DynamicConv, LightConv
from ..huggingface import ConvStateLayer
from .configuration import LightConvConfig, LightConvLMConfig

Config = LightConvConfig | LightConvLMConfig


class SinusoidalPositions(nn.Module):
    """Sines and cosines of the position: [sin(p f_0), sin(p f_1), ..., cos(p f_0), ...], f_i = 10000^(-i / (E/2 - 1)).

    Positions count from `pad_token_id` + 1; the position of padding is `pad_token_id` and its embedding zero.
    """

    def __init__(self, dim: int, pad_token_id: int):
        super().__init__()
        self.dim, self.pad_token_id = dim, pad_token_id
        self._table: Tensor | None = None  # no buffer: it is a function of its size and no part of a checkpoint

    def forward(self, positions: Tensor, longest: int, dtype: torch.dtype) -> Tensor:
        """Positions [B, T], none above `longest`, to [B, T, E]."""
        table = self._table
        if table is None or table.shape[0] <= longest or table.device != positions.device or table.dtype != dtype:
            self._table = table = self._build(max(1024, 2 * longest), positions.device).to(dtype)
        return table[positions]

    def _build(self, size: int, device: torch.device) -> Tensor:
        half = self.dim // 2
        scale = math.log(10000) / max(1, half - 1)
        frequencies = torch.exp(-scale * torch.arange(half, dtype=torch.float32, device=device))
        angles = torch.arange(size, dtype=torch.float32, device=device)[:, None] * frequencies
        table = torch.cat([angles.sin(), angles.cos(), angles.new_zeros(size, self.dim % 2)], dim=1)
        table[self.pad_token_id] = 0
        return table


class Embeddings(nn.Module):
    """Tokens times sqrt(E), plus positions, and dropout; `tokens`: of another kind than one matrix."""

    def __init__(self, config: Config, vocab_size: int, max_positions: int, tokens: nn.Module | None = None):
        super().__init__()
        self.pad_token_id, self.max_positions = config.pad_token_id or 0, max_positions
        self.tokens = nn.Embedding(vocab_size, config.d_model, config.pad_token_id) if tokens is None else tokens
        self.learned = config.position_embedding == "learned"
        self.positions: nn.Module = (
            nn.Embedding(max_positions + self.pad_token_id + 1, config.d_model, self.pad_token_id)
            if self.learned
            else SinusoidalPositions(config.d_model, self.pad_token_id)
        )
        self.scale = math.sqrt(config.d_model)
        self.dropout = config.dropout

    def forward(self, ids: Tensor | None, embeds: Tensor | None, mask: Tensor | None, offset: int) -> Tensor:
        """Embed ids [B, T], or embeds [B, T, E] in place of their embeddings.

        Args:
            ids: [B, T] int64.
            embeds: [B, T, E], instead of `ids`.
            mask: [B, offset + T], nonzero at tokens; None: no padding.
            offset: tokens before these.

        Raises:
            ValueError: more tokens than there are learned positions.
        """
        x = self.tokens(ids) if embeds is None else embeds
        length = x.shape[1]
        if mask is None:
            positions = (
                self.pad_token_id + 1 + torch.arange(offset, offset + length, device=x.device).expand(len(x), -1)
            )
        else:
            mask = mask.long()
            positions = (self.pad_token_id + mask.cumsum(1) * mask)[:, -length:] if length else mask[:, :0]
        longest = self.pad_token_id + offset + length
        if self.learned:
            if offset + length > self.max_positions:
                raise ValueError(
                    f"the model has {self.max_positions} learned positions and cannot take {offset + length} tokens: "
                    "shorten the input, or train with more (max_source_positions, max_target_positions)"
                )
            position = self.positions(positions)
        else:
            position = self.positions(positions, longest, x.dtype)
        return F.dropout(self.scale * x + position, self.dropout, self.training)


class Attention(nn.Module):
    """Multi-head attention, of a sequence to itself or to the encoder's output."""

    def __init__(self, config: Config, side: str):
        super().__init__()
        self.config, self.heads, self.dropout = config, getattr(config, f"{side}_heads"), config.attention_dropout
        self.q_proj = nn.Linear(config.d_model, config.d_model)
        self.k_proj = nn.Linear(config.d_model, config.d_model)
        self.v_proj = nn.Linear(config.d_model, config.d_model)
        self.out_proj = nn.Linear(config.d_model, config.d_model)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, S, E] to keys and values, [B, heads, S, E / heads] each."""
        return self._split(self.k_proj(x)), self._split(self.v_proj(x))

    def forward(
        self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, causal: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from x, [B, T, E]; mask is True where a query may look, broadcastable to [B, heads, T, S].

        Keys and values may have fewer rows: those of B / n, each for n rows of x, with a mask of [B, 1, 1, S] or none.

        Returns:
            [B, T, E], and with `attn_implementation="eager"` the probabilities, [B, heads, T, S].
        """
        queries, dropout = self._split(self.q_proj(x)), self.dropout if self.training else 0.0
        probabilities = None
        if self.config._attn_implementation == "eager":
            scores = queries @ keys.mT * queries.shape[-1] ** -0.5
            mask = _triangle(queries, keys) if causal else mask
            if mask is not None:
                scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
            probabilities = scores.softmax(-1, torch.promote_types(scores.dtype, torch.float32)).to(scores.dtype)
            y = F.dropout(probabilities, dropout) @ values
        else:
            shared = len(queries) // max(1, len(keys))  # a batch may be empty
            if shared > 1:
                queries = queries.unflatten(0, (-1, shared)).transpose(1, 2).flatten(2, 3)
                mask = None if mask is None else mask[::shared]
            y = F.scaled_dot_product_attention(queries, keys, values, mask, dropout, causal)
            if shared > 1:
                y = y.unflatten(2, (shared, -1)).transpose(1, 2).flatten(0, 1)
        return self.out_proj(y.transpose(1, 2).flatten(2)), probabilities

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _triangle(queries: Tensor, keys: Tensor) -> Tensor:
    """[T, S], True where the last T of S tokens may look."""
    T, S = queries.shape[-2], keys.shape[-2]
    return torch.ones(T, S, dtype=torch.bool, device=keys.device).tril(S - T)


class ConvMixer(nn.Module):
    """Linear, gated linear unit, convolution, Linear: what the 2019 paper puts in the place of self-attention."""

    def __init__(self, config: Config, side: str, layer: int):
        super().__init__()
        dim = getattr(config, f"{side}_conv_dim") or config.d_model
        self.glu, self.input_dropout = config.glu, config.input_dropout
        self.in_proj = nn.Linear(config.d_model, 2 * dim if config.glu else dim)
        module = DynamicConv if getattr(config, f"{side}_mixer") == "dynamic" else LightConv
        self.conv = module(
            dim,
            getattr(config, f"{side}_kernel_sizes")[layer],
            getattr(config, f"{side}_heads"),
            padding="causal" if side == "decoder" else "same",
            normalize="softmax" if config.normalize_filters else None,
            weight_dropout=config.weight_dropout,
        )
        self.out_proj = nn.Linear(dim, config.d_model)

    def forward(self, x: Tensor, mask: Tensor | None, cache: ConvStateLayer | None = None) -> Tensor:
        """Mix x, [B, T, E]; mask [B, T] is nonzero at tokens, and the convolution sees zeros elsewhere."""
        x = self.in_proj(F.dropout(x, self.input_dropout, self.training))
        if self.glu:
            x = F.glu(x)
        padding = None if mask is None else mask[:, -x.shape[1] :] == 0
        if padding is not None:
            x = x.masked_fill(padding[..., None], 0)
        if cache is None:
            return self.out_proj(self.conv(x))
        conv, keep = partial(self.conv, offset=cache.seen), self.conv.kernel_size - 1
        y = cache.convolve(conv, "conv", x, keep=keep, padding=padding)
        cache.seen += x.shape[1]
        return self.out_proj(y)


class SelfAttentionMixer(nn.Module):
    """Self-attention with the calling convention of :class:`ConvMixer`: the baseline of the 2019 paper."""

    def __init__(self, config: Config, side: str):
        super().__init__()
        self.causal = side == "decoder"
        self.attention = Attention(config, side)

    def forward(self, x: Tensor, mask: Tensor | None, cache: DynamicLayer | None = None) -> Tensor:
        """Mix x, [B, T, E]; mask [B, past + T] is nonzero at tokens."""
        keys, values = self.attention.keys_values(x)
        if cache is not None:
            keys, values = cache.update(keys, values)
        allowed = None if mask is None else mask[:, None, None, :].bool()
        causal = self.causal and x.shape[1] > 1
        if causal and (allowed is not None or keys.shape[2] > x.shape[1]):
            triangle = _triangle(x, keys)
            allowed, causal = triangle if allowed is None else triangle & allowed, False
        y, _ = self.attention(x, keys, values, allowed, causal)
        return y


def make_mixer(config: Config, side: str, layer: int) -> ConvMixer | SelfAttentionMixer:
    """The mixer of one layer of the "encoder" or "decoder"."""
    if getattr(config, f"{side}_mixer") == "attention":
        return SelfAttentionMixer(config, side)
    return ConvMixer(config, side, layer)


class FeedForward(nn.Module):
    """Linear, ReLU, Linear."""

    def __init__(self, dim: int, hidden: int, dropout: float):
        super().__init__()
        self.in_proj = nn.Linear(dim, hidden)
        self.out_proj = nn.Linear(hidden, dim)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, E] to [B, T, E]."""
        return self.out_proj(F.dropout(F.relu(self.in_proj(x)), self.dropout, self.training))


class Layer(GradientCheckpointingLayer):
    """Residual sublayers, each x + dropout(f(x)), with a LayerNorm before f (pre-norm) or after the sum (post-norm)."""

    def __init__(self, config: Config, side: str, layer: int):
        super().__init__()
        self.index, self.dropout, self.normalize_before = layer, config.dropout, config.normalize_before
        self.mixer = make_mixer(config, side, layer)
        self.mixer_norm = nn.LayerNorm(config.d_model)
        self.ffn = FeedForward(config.d_model, getattr(config, f"{side}_ffn_dim"), config.activation_dropout)
        self.ffn_norm = nn.LayerNorm(config.d_model)

    def _residual(self, x: Tensor, norm: nn.LayerNorm, sublayer: nn.Module, *args: Any) -> Tensor:
        y = sublayer(norm(x) if self.normalize_before else x, *args)
        y = F.dropout(y[0] if isinstance(y, tuple) else y, self.dropout, self.training)
        return x + y if self.normalize_before else norm(x + y)


class EncoderLayer(Layer):
    """Mixer and feed-forward."""

    def __init__(self, config: LightConvConfig, layer: int):
        super().__init__(config, "encoder", layer)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """[B, S, E] to [B, S, E]; mask [B, S] is nonzero at tokens."""
        x = self._residual(x, self.mixer_norm, self.mixer, mask)
        return self._residual(x, self.ffn_norm, self.ffn)


class LanguageModelLayer(Layer):
    """Causal mixer and feed-forward."""

    def __init__(self, config: LightConvLMConfig, layer: int):
        super().__init__(config, "decoder", layer)

    def forward(self, x: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        """[B, T, E] to [B, T, E]; mask [B, past + T] is nonzero at tokens; the cache is brought up to date."""
        own = None if cache is None else cache.layers[self.index]
        x = self._residual(x, self.mixer_norm, self.mixer, mask, own)
        return self._residual(x, self.ffn_norm, self.ffn)


class DecoderLayer(Layer):
    """Causal mixer, attention to the encoder's output, and feed-forward."""

    def __init__(self, config: LightConvConfig, layer: int):
        super().__init__(config, "decoder", layer)
        self.cross_attention = Attention(config, "decoder")
        self.cross_norm = nn.LayerNorm(config.d_model)

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        mask: Tensor | None,
        memory_mask: Tensor | None,
        cache: EncoderDecoderCache | None,
    ) -> Tensor:
        """[B, T, E] to [B, T, E].

        Args:
            x: [B, T, E].
            memory: [B, S, E], the encoder's output.
            mask: [B, past + T], nonzero at tokens; None: no padding.
            memory_mask: [B, 1, 1, S], True at source tokens; None: no padding.
            cache: of the tokens before x; brought up to date.
        """
        own = None if cache is None else cache.self_attention_cache.layers[self.index]
        x = self._residual(x, self.mixer_norm, self.mixer, mask, own)
        keys, values = self._cross_keys_values(memory, cache)
        x = self._residual(x, self.cross_norm, self.cross_attention, keys, values, memory_mask)
        return self._residual(x, self.ffn_norm, self.ffn)

    def _cross_keys_values(self, memory: Tensor, cache: EncoderDecoderCache | None) -> tuple[Tensor, Tensor]:
        if cache is None:
            return self.cross_attention.keys_values(memory)
        cross: Any = cache.cross_attention_cache
        if cache.is_updated.get(self.index):
            return cross.layers[self.index].keys, cross.layers[self.index].values
        cache.is_updated[self.index] = True
        shared = getattr(cache, "beams", 1)
        return cross.update(*self.cross_attention.keys_values(memory[::shared]), self.index)
