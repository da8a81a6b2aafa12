"""Depthwise convolution with the same filters for every token, on the CPU."""

from numba import prange
from torch import Tensor

from ..options import Options
from .rows import (
    add_products,
    add_scaled,
    add_static_transpose,
    add_static_window,
    channels_at_a_time,
    finish,
    row,
    scaled,
)  # fmt: skip
from .runtime import flat, groups, kernel, launch, optional, rows, tasks


def forward(
    x: Tensor, taps: Tensor, bias: Tensor | None, state: Tensor | None, cu_seqlens: Tensor | None, options: Options,
    grad: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The operator with taps [W, D]; with `grad` the gradient of the sum behind SiLU instead, in the dtype of taps."""
    inputs, (B, T, D) = rows(x, taps.dtype), x.shape
    out = inputs.new_empty(B, T, D)
    launch(
        _forward, flat(out), flat(inputs), inputs.stride()[:2], flat(taps), optional(state, taps), optional(bias, taps),
        optional(grad, taps), tasks(B, T, cu_seqlens), (T, D, *_widths(taps)), *options,
    )  # fmt: skip
    return out.to(x.dtype) if grad is None else out


def backward(
    dz: Tensor, grad: Tensor, x: Tensor, taps: Tensor, state: Tensor | None, cu_seqlens: Tensor | None,
    options: Options, of_inputs: bool, of_filters: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Gradients of x, of the taps [W, D] and of the state, from those of the sum, `dz`, and of the output, `grad`.

    Those that are not wanted are empty.
    """
    dtype, (B, T, D) = taps.dtype, x.shape
    z, inputs, residual = rows(dz, dtype), rows(x, dtype), rows(grad, dtype)
    table = tasks(B, T, cu_seqlens)
    edges = groups(table, limit=B * T // (20 * len(taps)))
    dx = inputs.new_empty((B, T, D) if of_inputs else (0,))
    dstate = inputs.new_zeros(state.shape) if of_inputs and state is not None else None
    partial = inputs.new_zeros(len(edges) - 1 if of_filters else 0, *taps.shape)
    launch(
        _backward, flat(dx), optional(dstate, taps), flat(partial), flat(z), z.stride()[:2], flat(residual),
        residual.stride()[:2], flat(inputs), inputs.stride()[:2], flat(taps), optional(state, taps), table, edges,
        (T, D, *_widths(taps)), options.left, options.residual, options.scale,
    )  # fmt: skip
    return dx.to(x.dtype), partial.sum(0) * options.scale, dstate


def _widths(taps: Tensor) -> tuple[int, int]:
    return taps.shape[0], channels_at_a_time(taps.shape[0])


@kernel
def _forward(out, x, x_strides, taps, state, bias, grad, tasks, sizes, left, silu, residual, scale):
    length, D, W, channels = sizes
    for task in prange(len(tasks)):
        n, b, start, T = tasks[task, 0], tasks[task, 1], tasks[task, 2], tasks[task, 3]
        base, step = b * x_strides[0] + start * x_strides[1], x_strides[1]
        for d in range(0, D, channels):
            for t in range(tasks[task, 4], tasks[task, 5]):
                o = (b * length + start + t) * D + d
                y = row(out, o, min(channels, D - d))
                add_static_window(y, True, taps, state, n, x, base, step, d, t, T, D, W, left)
                finish(y, bias, d, x, base + t * step + d, grad, o, silu, residual, scale)


@kernel
def _backward(
    dx, dstate, partial, g, g_strides, dy, dy_strides, x, x_strides, taps, state, tasks, edges, sizes, left, residual,
    scale,
):  # fmt: skip
    length, D, W, channels = sizes
    blocks = (D + channels - 1) // channels
    for item in prange((len(edges) - 1) * blocks):
        group, d = item // blocks, item % blocks * channels
        m = min(channels, D - d)
        for task in range(edges[group], edges[group + 1]):
            n, b, start, T = tasks[task, 0], tasks[task, 1], tasks[task, 2], tasks[task, 3]
            t0, t1 = tasks[task, 4], tasks[task, 5]
            base, step = b * g_strides[0] + start * g_strides[1], g_strides[1]
            for s in range(-(W - 1) if t0 == 0 and state.size > 0 else t0, t1 if dx.size > 0 else -W):
                if s < 0:
                    y = row(dstate, (n * (W - 1) + W - 1 + s) * D + d, m)
                else:
                    y = row(dx, (b * length + start + s) * D + d, m)
                add_static_transpose(y, True, taps, g, base, step, d, s, T, D, W, left)
                if residual and s >= 0:
                    add_scaled(y, dy, b * dy_strides[0] + (start + s) * dy_strides[1] + d, scale)
                elif scale != 1:
                    scaled(y, scale)
            for w in range(W if partial.size > 0 else 0):
                y = row(partial, (group * W + w) * D + d, m)
                first, last = max(t0, left - w), min(t1, T + left - w)
                if state.size > 0:
                    past = (n * (W - 1) + t0 + w) * D + d
                    add_products(y, False, g, base + t0 * step + d, step, state, past, D, min(t1, first) - t0)
                past = b * x_strides[0] + (start + first + w - left) * x_strides[1] + d
                add_products(y, False, g, base + first * step + d, step, x, past, x_strides[1], last - first)
