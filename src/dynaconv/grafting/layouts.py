"""How the channels of projections that make several things at once follow one another, by family of models."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Fusion:
    """The parts of a projection [B, T, D], whose channels come in groups that have some of every part.

    Attributes:
        groups: number of groups of channels: 1 where the parts are concatenated, or one for each head.
        parts: "q", "k", "v" or None for something else, and the channels of it in a group.
    """

    groups: int
    parts: tuple[tuple[str | None, int], ...]

    def split(self, y: Tensor) -> list[Tensor]:
        """[B, T, D] to its parts, [B, T, groups * size] each."""
        grouped = y.unflatten(-1, (self.groups, -1))
        return [part.flatten(-2) for part in grouped.split([size for _, size in self.parts], dim=-1)]

    def merge(self, parts: list[Tensor]) -> Tensor:
        """The inverse of :meth:`split`."""
        return torch.cat([part.unflatten(-1, (self.groups, -1)) for part in parts], dim=-1).flatten(-2)


def fusion_of(config: Any, name: str, linear: nn.Module) -> Fusion | None:
    """How a projection in an attention module is fused; None: it is not, or that is not known.

    Args:
        config: of the model's text part.
        name: of the projection in its attention module.
        linear: the projection.
    """
    if name == "kv_b_proj":
        return Fusion(config.num_attention_heads, (("k", config.qk_nope_head_dim), ("v", config.v_head_dim)))
    if (config.model_type, name) == ("codegen", "qkv_proj"):  # of each of four partitions [q | v | k]
        return Fusion(4, tuple((letter, linear.get_parameter("weight").shape[0] // 12) for letter in "qvk"))
    layout = _LAYOUTS.get((config.model_type, name))
    dim = linear.out_features if isinstance(linear, nn.Linear) else linear.get_parameter("weight").shape[1]
    return None if layout is None else layout(config, dim)


def known_fusions() -> list[str]:
    """What :func:`fusion_of` knows, for errors."""
    return [f"{name} of {kind}" for kind, name in (*_LAYOUTS, ("codegen", "qkv_proj"))]


def _heads(dim: int, groups: int, queries: int, shared: int = 1) -> Fusion:
    """Of every group so many heads of queries, then of keys, then of values."""
    size = dim // (groups * (queries + 2 * shared))
    return Fusion(groups, (("q", queries * size), ("k", shared * size), ("v", shared * size)))


def _concatenated(config: Any, dim: int) -> Fusion:
    heads = config.num_attention_heads
    return _heads(dim, 1, heads, getattr(config, "num_key_value_heads", None) or heads)


def _per_head(config: Any, dim: int) -> Fusion:
    return _heads(dim, config.num_attention_heads, 1)


def _gpt_bigcode(config: Any, dim: int) -> Fusion:
    return _heads(dim, 1, config.num_attention_heads) if config.multi_query else _per_head(config, dim)


def _falcon(config: Any, dim: int) -> Fusion:
    if config.new_decoder_architecture:
        return _heads(dim, config.num_kv_heads, config.num_attention_heads // config.num_kv_heads)
    return _gpt_bigcode(config, dim)


def _dbrx(config: Any, dim: int) -> Fusion:
    return _heads(dim, 1, config.n_heads, config.attn_config.kv_n_heads)


def _gated_query(config: Any, dim: int) -> Fusion:
    """Of every head [q | gate of the output]."""
    heads = config.num_attention_heads
    return Fusion(heads, (("q", dim // heads // 2), (None, dim // heads // 2)))


_LAYOUTS: dict[tuple[str, str], Callable[[Any, int], Fusion]] = {
    ("gpt2", "c_attn"): _concatenated,
    ("openai-gpt", "c_attn"): _concatenated,
    ("gpt_bigcode", "c_attn"): _gpt_bigcode,
    ("phi3", "qkv_proj"): _concatenated,
    ("phi4_multimodal", "qkv_proj"): _concatenated,
    ("mpt", "Wqkv"): _concatenated,
    ("modernbert", "Wqkv"): _concatenated,
    ("dbrx", "Wqkv"): _dbrx,
    ("bloom", "query_key_value"): _per_head,
    ("gpt_neox", "query_key_value"): _per_head,
    ("gpt_neox_japanese", "query_key_value"): _per_head,
    ("persimmon", "query_key_value"): _per_head,
    ("falcon", "query_key_value"): _falcon,
    ("qwen3_next", "q_proj"): _gated_query,
    ("qwen3_5_text", "q_proj"): _gated_query,
    ("qwen3_5_moe_text", "q_proj"): _gated_query,
    ("qwen4_exp_text", "q_proj"): _gated_query,
    ("lara_mini", "q_proj"): _gated_query,
}
