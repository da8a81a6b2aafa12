"""Depthwise convolution with a filter of its own for every token and head, in Triton.

A tile is [tokens, heads, channels of a head]: a filter is loaded once for all channels that share it.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..options import Options
from .runtime import ceil_div, chunks, contiguous, kernel, launch, launch_options, power_of_two
from .taps import expand
from .tiles import finish, load, load_inputs, load_token, locate, store_gradient

TOKENS, CHANNELS = 16, 128  # of a tile


class _Tile(NamedTuple):
    """How a tile covers H heads of C channels: BH heads and BC channels of each."""

    heads: int
    channels: int
    head_blocks: int
    channel_blocks: int


def _tile(H: int, C: int, limit: int = CHANNELS) -> _Tile:
    channels = power_of_two(C, 1, CHANNELS)
    heads = power_of_two(H, 1, min(limit, CHANNELS // channels))
    return _Tile(heads, channels, ceil_div(H, heads), ceil_div(C, channels))


def forward(
    x: Tensor, filters: Tensor, static: Tensor | None, bias: Tensor | None, past: Tensor | None,
    cu_seqlens: Tensor | None, options: Options, dtype: torch.dtype, grad: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The operator with filters [B, T, H, W] plus static [Hs, W]; with `grad` the gradient of the sum behind SiLU."""
    D, (H, W), taps = x.shape[2], filters.shape[2:], expand(static, x.shape[2], dtype)
    out = x.new_empty(x.shape, dtype=x.dtype if grad is None else dtype)
    parts, tile = chunks(x, cu_seqlens, TOKENS), _tile(H, D // H)
    launch(
        _forward, parts.count * tile.head_blocks * tile.channel_blocks, x, out, x, x.stride(), filters,
        filters.stride(), taps, contiguous(past), contiguous(bias), contiguous(grad), parts.table, parts.length,
        options.left, options.scale, D, H, W, options.silu, options.residual, TOKENS, tile.heads, tile.channels,
        **launch_options(TOKENS * CHANNELS),
    )  # fmt: skip
    return out


def backward(
    dz: Tensor, grad: Tensor, x: Tensor, filters: Tensor, static: Tensor | None, past: Tensor | None,
    cu_seqlens: Tensor | None, options: Options, dtype: torch.dtype, of_inputs: bool, of_filters: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Gradients of x, of the filters [B, T, H, W] and of `past`."""
    D, (H, W), taps = x.shape[2], filters.shape[2:], expand(static, x.shape[2], dtype)
    dx = x.new_empty(x.shape) if of_inputs else None
    dpast = past.new_zeros(past.shape) if of_inputs and past is not None else None
    dfilters = filters.new_empty(filters.shape) if of_filters else None
    # The filter gradients of a token are kept, [heads, W].
    parts, tile = chunks(x, cu_seqlens, TOKENS), _tile(H, D // H, max(1, CHANNELS * 4 // power_of_two(W)))
    launch(
        _backward, parts.count * tile.head_blocks, x, dx, dpast, dfilters, dz, dz.stride(), grad, grad.stride(), x,
        x.stride(), filters, filters.stride(), taps, contiguous(past), parts.table,
        parts.length, options.left, options.scale, D, H, W, power_of_two(W), options.residual, TOKENS,
        power_of_two(W - 1), tile.heads, tile.channels, **launch_options(TOKENS * CHANNELS),
    )  # fmt: skip
    return x.new_empty(0) if dx is None else dx, filters.new_empty(0) if dfilters is None else dfilters, dpast


@triton.jit
def _filter(filters, strides, taps, row, t, h, d, w, mask_f, mask_d, D: tl.constexpr):
    """Tap w of token t: of its head, plus that of the channel where there are static taps."""
    tap = tl.full([1, 1, 1], w, tl.int64)
    values = load(filters, row * strides[0] + t * strides[1] + h * strides[2] + tap * strides[3], mask_f)
    if taps is not None:
        values = values + load(taps, w * D + d, mask_d)
    return values


@kernel
def _forward(
    out, x, x_strides, filters, filter_strides, taps, past, bias, grad, table, length, left, scale, D: tl.constexpr,
    H: tl.constexpr, W: tl.constexpr, SILU: tl.constexpr, RESIDUAL: tl.constexpr, BT: tl.constexpr, BH: tl.constexpr,
    BC: tl.constexpr,
):  # fmt: skip
    C: tl.constexpr = D // H
    channel_blocks: tl.constexpr = (C + BC - 1) // BC
    blocks: tl.constexpr = (H + BH - 1) // BH * channel_blocks
    block = (tl.program_id(0) % blocks).to(tl.int64)
    row, sequence, begin, end, first = locate(tl.program_id(0) // blocks, table, length, BT)
    s = first + tl.arange(0, BT).to(tl.int64)[:, None, None]
    h = block // channel_blocks * BH + tl.arange(0, BH).to(tl.int64)[None, :, None]
    c = block % channel_blocks * BC + tl.arange(0, BC).to(tl.int64)[None, None, :]
    d, valid = h * C + c, (h < H) & (c < C)
    total = tl.zeros([BT, BH, BC], tl.float32)
    for w in tl.static_range(W):
        inputs = load_inputs(x, x_strides, past, row, sequence, begin, end, s + w - left, d, valid, D, W)
        total += _filter(filters, filter_strides, taps, row, s, h, d, w, (s < end) & (h < H), valid, D) * inputs
    mask = (s < end) & valid
    total = finish(total, bias, x, x_strides, grad, row, s, d, mask, length, D, SILU, RESIDUAL, scale)
    tl.store(out + (row * length + s) * D + d, total, mask=mask)


@triton.jit
def _input_gradient(
    dz, dz_strides, filters, filter_strides, taps, row, begin, end, s, h, d, valid, left, D: tl.constexpr,
    H: tl.constexpr, W: tl.constexpr, BT: tl.constexpr, BH: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """sum_w filters[t, h, w] * dz[t, d] with t = s + left - w."""
    total = tl.zeros([BT, BH, BC], tl.float32)
    for w in tl.static_range(W):
        t = s + left - w
        inside = (t >= begin) & (t < end)
        gradient = load_token(dz, dz_strides, row, t, d, inside & valid)
        total += _filter(filters, filter_strides, taps, row, t, h, d, w, inside & (h < H), valid, D) * gradient
    return total


@kernel
def _backward(
    dx, dpast, dfilters, dz, dz_strides, dy, dy_strides, x, x_strides, filters, filter_strides, taps, past, table,
    length, left, scale, D: tl.constexpr, H: tl.constexpr, W: tl.constexpr, WP: tl.constexpr, RESIDUAL: tl.constexpr,
    BT: tl.constexpr, BP: tl.constexpr, BH: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    C: tl.constexpr = D // H
    blocks: tl.constexpr = (H + BH - 1) // BH
    row, sequence, begin, end, first = locate(tl.program_id(0) // blocks, table, length, BT)
    s = first + tl.arange(0, BT).to(tl.int64)[:, None, None]
    h = (tl.program_id(0) % blocks).to(tl.int64) * BH + tl.arange(0, BH).to(tl.int64)[None, :, None]
    w_last = tl.arange(0, WP)[None, None, :]
    sums = tl.zeros([BT, BH, WP], tl.float32)
    for c_0 in range(0, C, BC):
        c = c_0 + tl.arange(0, BC).to(tl.int64)[None, None, :]
        d, valid = h * C + c, (h < H) & (c < C)
        if dpast is not None:
            if first == begin:
                p = begin - BP + tl.arange(0, BP).to(tl.int64)[:, None, None]
                earlier = _input_gradient(
                    dz, dz_strides, filters, filter_strides, taps, row, begin, end, p, h, d, valid, left, D, H, W, BP,
                    BH, BC,
                )  # fmt: skip
                store_gradient(
                    dx, dpast, earlier, dy, dy_strides, row, sequence, begin, p, d, valid, length, D, W, False, scale
                )
        mask = (s < end) & valid
        if dx is not None:
            total = _input_gradient(
                dz, dz_strides, filters, filter_strides, taps, row, begin, end, s, h, d, valid, left, D, H, W, BT, BH,
                BC,
            )  # fmt: skip
            store_gradient(
                dx, None, total, dy, dy_strides, row, sequence, begin, s, d, mask, length, D, W, RESIDUAL, scale
            )
        if dfilters is not None:
            gradient = load_token(dz, dz_strides, row, s, d, mask)
            for w in tl.static_range(W):
                inputs = load_inputs(x, x_strides, past, row, sequence, begin, end, s + w - left, d, mask, D, W)
                sums += tl.where(w_last == w, tl.sum(gradient * inputs, 2)[:, :, None], 0)
    if dfilters is not None:
        offsets = ((row * length + s) * H + h) * W + w_last
        tl.store(dfilters + offsets, sums * scale, mask=(s < end) & (h < H) & (w_last < W))
