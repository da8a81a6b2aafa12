"""Depthwise convolution with a filter of its own for every token and head, on the CPU.

The gradient of the input is a sum over rows like the output, read with other strides: with t = s + left - w,

    dx[s] = sum_w f[t, w] * dz[t]

walks along a diagonal of f.
"""

import torch
from numba import prange
from torch import Tensor

from ..options import Options
from .rows import (
    add_scaled,
    add_static_transpose,
    add_static_window,
    channels_at_a_time,
    finish,
    row,
    scaled,
)  # fmt: skip
from .runtime import flat, function, kernel, launch, optional, rows, tasks

SHORT = 16  # heads of fewer channels are not worth a vectorised loop of their own


def forward(
    x: Tensor, filters: Tensor, taps: Tensor | None, bias: Tensor | None, state: Tensor | None,
    cu_seqlens: Tensor | None, options: Options, dtype: torch.dtype, grad: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The operator with filters [B, T, H, W] plus taps [W, D]; with `grad` the gradient of the sum behind SiLU."""
    filters, inputs, (B, T, D) = filters.detach().to(dtype), rows(x, dtype), x.shape
    H, W = filters.shape[2:]
    out = inputs.new_empty(B, T, D)
    launch(
        _forward, flat(out), flat(inputs), inputs.stride()[:2], flat(filters), filters.stride(),
        optional(taps, filters), optional(state, filters), optional(bias, filters),
        optional(grad, filters), tasks(B, T, cu_seqlens), (T, D, W, D // H, channels_at_a_time(W)), *options,
    )  # fmt: skip
    return out.to(x.dtype) if grad is None else out


def backward(
    dz: Tensor, grad: Tensor, x: Tensor, filters: Tensor, taps: Tensor | None, state: Tensor | None,
    cu_seqlens: Tensor | None, options: Options, dtype: torch.dtype, of_inputs: bool, of_filters: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Gradients of x, of the filters [B, T, H, W] and of the state; those that are not wanted are empty."""
    (B, T, D), (H, W) = x.shape, filters.shape[2:]
    kind, filters = filters.dtype, filters.detach().to(dtype)
    z, inputs, residual = rows(dz, dtype), rows(x, dtype), rows(grad, dtype)
    dx = inputs.new_empty((B, T, D) if of_inputs else (0,))
    df = inputs.new_empty((B, T, H, W) if of_filters else (0,))
    dstate = inputs.new_zeros(state.shape) if of_inputs and state is not None else None
    launch(
        _backward, flat(dx), flat(df), optional(dstate, filters), flat(z), z.stride()[:2], flat(residual),
        residual.stride()[:2], flat(inputs), inputs.stride()[:2], flat(filters), filters.stride(),
        optional(taps, filters), optional(state, filters), tasks(B, T, cu_seqlens),
        (T, D, W, D // H, channels_at_a_time(W)), options.left, options.residual, options.scale,
    )  # fmt: skip
    return dx.to(x.dtype), df.to(kind), dstate


@function
def _multiples(y, f, k, k_step, x, i, i_step, count):
    """y[c] = sum_{r < count} f[k + r k_step] * x[i + r i_step + c], four rows at a time."""
    n, fresh = len(y), True
    if count < 4:
        y[:] = 0
    while count >= 4:
        f0, f1, f2, f3 = f[k], f[k + k_step], f[k + 2 * k_step], f[k + 3 * k_step]
        x0, x1, x2, x3 = row(x, i, n), row(x, i + i_step, n), row(x, i + 2 * i_step, n), row(x, i + 3 * i_step, n)
        if fresh:
            for c in range(n):
                y[c] = (f0 * x0[c] + f1 * x1[c]) + (f2 * x2[c] + f3 * x3[c])
            fresh = False
        else:
            for c in range(n):
                y[c] += (f0 * x0[c] + f1 * x1[c]) + (f2 * x2[c] + f3 * x3[c])
        i += 4 * i_step
        k += 4 * k_step
        count -= 4
    while count > 0:
        f0, x0 = f[k], row(x, i, n)
        for c in range(n):
            y[c] += f0 * x0[c]
        i += i_step
        k += k_step
        count -= 1


@function
def _sum(y, f, k, k_step, h_step, x, i, i_step, count, d, C):
    """y[c] = sum_{r < count} f[k + r k_step + head h_step] * x[i + r i_step + c], with the head of channel d + c."""
    m, c = len(y), 0
    while c < m:
        h = (d + c) // C
        end = min(m, (h + 1) * C - d)
        if C >= SHORT:
            _multiples(row(y, c, end - c), f, k + h * h_step, k_step, x, i + c, i_step, count)
        else:
            for e in range(c, end):
                total = y.dtype.type(0)
                for r in range(count):
                    total += f[k + h * h_step + r * k_step] * x[i + r * i_step + e]
                y[e] = total
        c = end


@function
def _dots(out, o, g, j, x, i, step, count, n):
    """out[o + r] = sum_{c < n} g[j + c] * x[i + r step + c] for r < count, four at a time."""
    zero = out.dtype.type(0)
    y = row(g, j, n)
    while count >= 4 and n >= SHORT:
        x0, x1, x2, x3 = row(x, i, n), row(x, i + step, n), row(x, i + 2 * step, n), row(x, i + 3 * step, n)
        s0, s1, s2, s3 = zero, zero, zero, zero
        for c in range(n):
            s0 += y[c] * x0[c]
            s1 += y[c] * x1[c]
            s2 += y[c] * x2[c]
            s3 += y[c] * x3[c]
        out[o], out[o + 1], out[o + 2], out[o + 3] = s0, s1, s2, s3
        i += 4 * step
        o += 4
        count -= 4
    while count > 0:
        s0 = zero
        for c in range(n):
            s0 += y[c] * x[i + c]
        out[o] = s0
        i += step
        o += 1
        count -= 1


@kernel
def _forward(out, x, x_strides, f, f_strides, taps, state, bias, grad, tasks, sizes, left, silu, residual, scale):
    length, D, W, C, channels = sizes
    for task in prange(len(tasks)):
        n, b, start, T = tasks[task, 0], tasks[task, 1], tasks[task, 2], tasks[task, 3]
        base, step = b * x_strides[0] + start * x_strides[1], x_strides[1]
        for d in range(0, D, channels):
            for t in range(tasks[task, 4], tasks[task, 5]):
                o = (b * length + start + t) * D + d
                y = row(out, o, min(channels, D - d))
                k = b * f_strides[0] + (start + t) * f_strides[1]
                skip = max(0, left - t)
                i, count = base + (t + skip - left) * step + d, min(W, T + left - t) - skip
                _sum(y, f, k + skip * f_strides[3], f_strides[3], f_strides[2], x, i, step, count, d, C)
                if state.size > 0:
                    for w in range(skip):
                        v = row(state, (n * (W - 1) + t + w) * D + d, len(y))
                        for c in range(len(y)):
                            y[c] += f[k + w * f_strides[3] + (d + c) // C * f_strides[2]] * v[c]
                if taps.size > 0:
                    add_static_window(y, False, taps, state, n, x, base, step, d, t, T, D, W, left)
                finish(y, bias, d, x, base + t * step + d, grad, o, silu, residual, scale)


@kernel
def _backward(
    dx, df, dstate, g, g_strides, dy, dy_strides, x, x_strides, f, f_strides, taps, state, tasks, sizes, left,
    residual, scale,
):  # fmt: skip
    length, D, W, C, channels = sizes
    for task in prange(len(tasks)):
        n, b, start, T = tasks[task, 0], tasks[task, 1], tasks[task, 2], tasks[task, 3]
        t0, t1 = tasks[task, 4], tasks[task, 5]
        base, step = b * g_strides[0] + start * g_strides[1], g_strides[1]
        for d in range(0, D, channels):
            m = min(channels, D - d)
            for s in range(-(W - 1) if t0 == 0 and state.size > 0 else t0, t1 if dx.size > 0 else -W):
                if s < 0:
                    y = row(dstate, (n * (W - 1) + W - 1 + s) * D + d, m)
                else:
                    y = row(dx, (b * length + start + s) * D + d, m)
                first, last = max(0, s + left - W + 1), min(T, s + left + 1)
                k = b * f_strides[0] + (start + first) * f_strides[1] + (s + left - first) * f_strides[3]
                k_step, i = f_strides[1] - f_strides[3], base + first * step + d
                _sum(y, f, k, k_step, f_strides[2], g, i, step, last - first, d, C)
                if taps.size > 0:
                    add_static_transpose(y, False, taps, g, base, step, d, s, T, D, W, left)
                if residual and s >= 0:
                    add_scaled(y, dy, b * dy_strides[0] + (start + s) * dy_strides[1] + d, scale)
                elif scale != 1:
                    scaled(y, scale)
        for h in range(D // C if df.size > 0 else 0):
            for t in range(t0, t1):
                o = ((b * length + start + t) * (D // C) + h) * W
                skip, end = min(W, max(0, left - t)), min(W, T + left - t)
                j = base + t * step + h * C
                if state.size > 0:
                    _dots(df, o, g, j, state, (n * (W - 1) + t) * D + h * C, D, skip, C)
                else:
                    df[o : o + skip] = 0
                df[o + end : o + W] = 0
                i = b * x_strides[0] + (start + t + skip - left) * x_strides[1] + h * C
                _dots(df, o + skip, g, j, x, i, x_strides[1], end - skip, C)
                for w in range(W):
                    df[o + w] *= scale
