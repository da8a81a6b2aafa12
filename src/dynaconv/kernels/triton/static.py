"""Depthwise convolution with the same filters for every token, in Triton."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..options import Options
from .runtime import ceil_div, chunks, contiguous, kernel, launch, launch_options, power_of_two
from .taps import collapse, expand
from .tiles import finish, load, load_inputs, load_token, locate, store_gradient

TOKENS, CHANNELS = 32, 64  # of a tile
PROGRAMS = 1024  # of the backward pass, where there are so many tokens; each keeps a sum of filter gradients


def forward(
    x: Tensor, filters: Tensor, bias: Tensor | None, past: Tensor | None, cu_seqlens: Tensor | None, options: Options,
    dtype: torch.dtype, grad: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The operator with filters [H, W]; with `grad` the gradient of the sum behind SiLU instead, in fp32."""
    D, W, taps = x.shape[2], filters.shape[1], expand(filters, x.shape[2], dtype)
    out = x.new_empty(x.shape, dtype=x.dtype if grad is None else dtype)
    parts, block = chunks(x, cu_seqlens, TOKENS), power_of_two(D, 16, CHANNELS)
    launch(
        _forward, parts.count * ceil_div(D, block), x, out, x, x.stride(), taps, contiguous(past),
        contiguous(bias), contiguous(grad), parts.table, parts.length, options.left, options.scale, D, W, options.silu,
        options.residual, TOKENS, block, **launch_options(TOKENS * block),
    )  # fmt: skip
    return out


def backward(
    dz: Tensor, grad: Tensor, x: Tensor, filters: Tensor, past: Tensor | None, cu_seqlens: Tensor | None,
    options: Options, dtype: torch.dtype, of_inputs: bool, of_filters: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Gradients of x, of the filters and of `past`, from those of the sum, `dz`, and of the output, `grad`."""
    D, W, taps = x.shape[2], filters.shape[1], expand(filters, x.shape[2], dtype)
    dx = x.new_empty(x.shape) if of_inputs else None
    dpast = past.new_zeros(past.shape) if of_inputs and past is not None else None
    parts, block = chunks(x, cu_seqlens, TOKENS), power_of_two(D, 16, CHANNELS)
    blocks = ceil_div(D, block)
    each = ceil_div(parts.count, max(1, PROGRAMS // blocks))
    programs = ceil_div(parts.count, each)
    partial = x.new_empty(programs, W, D, dtype=dtype) if of_filters else None
    launch(
        _backward, programs * blocks, x, dx, dpast, partial, dz, dz.stride(), grad, grad.stride(), x,
        x.stride(), taps, contiguous(past), parts.table, parts.length, parts.count, each, options.left, options.scale,
        D, W, power_of_two(W), options.residual, TOKENS, power_of_two(W - 1), block, **launch_options(TOKENS * block),
    )  # fmt: skip
    df = x.new_empty(0) if partial is None else collapse(partial.sum(0) * options.scale, filters)
    return x.new_empty(0) if dx is None else dx, df, dpast


@kernel
def _forward(
    out, x, x_strides, taps, past, bias, grad, table, length, left, scale, D: tl.constexpr, W: tl.constexpr,
    SILU: tl.constexpr, RESIDUAL: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    blocks: tl.constexpr = (D + BD - 1) // BD
    row, sequence, begin, end, first = locate(tl.program_id(0) // blocks, table, length, BT)
    s = first + tl.arange(0, BT).to(tl.int64)[:, None]
    d = (tl.program_id(0) % blocks).to(tl.int64) * BD + tl.arange(0, BD).to(tl.int64)[None, :]
    total = tl.zeros([BT, BD], tl.float32)
    for w in tl.static_range(W):
        inputs = load_inputs(x, x_strides, past, row, sequence, begin, end, s + w - left, d, d < D, D, W)
        total += load(taps, w * D + d, d < D) * inputs
    mask = (s < end) & (d < D)
    total = finish(total, bias, x, x_strides, grad, row, s, d, mask, length, D, SILU, RESIDUAL, scale)
    tl.store(out + (row * length + s) * D + d, total, mask=mask)


@triton.jit
def _input_gradient(
    dz, dz_strides, taps, row, begin, end, s, d, left, D: tl.constexpr, W: tl.constexpr, BT: tl.constexpr,
    BD: tl.constexpr,
):  # fmt: skip
    """sum_w taps[w, d] * dz[s + left - w, d]."""
    total = tl.zeros([BT, BD], tl.float32)
    for w in tl.static_range(W):
        t = s + left - w
        mask = (t >= begin) & (t < end) & (d < D)
        total += load(taps, w * D + d, d < D) * load_token(dz, dz_strides, row, t, d, mask)
    return total


@kernel
def _backward(
    dx, dpast, partial, dz, dz_strides, dy, dy_strides, x, x_strides, taps, past, table, length, count, each, left,
    scale, D: tl.constexpr, W: tl.constexpr, WP: tl.constexpr, RESIDUAL: tl.constexpr, BT: tl.constexpr,
    BP: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    blocks: tl.constexpr = (D + BD - 1) // BD
    program = tl.program_id(0) // blocks
    d = (tl.program_id(0) % blocks).to(tl.int64) * BD + tl.arange(0, BD).to(tl.int64)[None, :]
    w_row = tl.arange(0, WP)[:, None]
    sums = tl.zeros([WP, BD], tl.float32)
    for chunk in range(program * each, tl.minimum(program * each + each, count)):
        row, sequence, begin, end, first = locate(chunk, table, length, BT)
        if dpast is not None:
            if first == begin:
                s = begin - BP + tl.arange(0, BP).to(tl.int64)[:, None]
                earlier = _input_gradient(dz, dz_strides, taps, row, begin, end, s, d, left, D, W, BP, BD)
                store_gradient(
                    dx, dpast, earlier, dy, dy_strides, row, sequence, begin, s, d, d < D, length, D, W, False, scale
                )
        s = first + tl.arange(0, BT).to(tl.int64)[:, None]
        mask = (s < end) & (d < D)
        if dx is not None:
            total = _input_gradient(dz, dz_strides, taps, row, begin, end, s, d, left, D, W, BT, BD)
            store_gradient(
                dx, None, total, dy, dy_strides, row, sequence, begin, s, d, mask, length, D, W, RESIDUAL, scale
            )
        if partial is not None:
            gradient = load_token(dz, dz_strides, row, s, d, mask)
            for w in tl.static_range(W):
                inputs = load_inputs(x, x_strides, past, row, sequence, begin, end, s + w - left, d, mask, D, W)
                sums += tl.where(w_row == w, tl.sum(gradient * inputs, 0)[None, :], 0)
    if partial is not None:
        tl.store(partial + (program.to(tl.int64) * W + w_row) * D + d, sums, mask=(w_row < W) & (d < D))
