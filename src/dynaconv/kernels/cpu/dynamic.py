"""Depthwise convolution with a filter of its own for every token and head, on the CPU.

Both the output and the gradient of the input are the same sum over rows, read with other strides: with u = W - 1 - w,

    dx[s] = sum_w f[s + left - w, w] * dy[s + left - w]
          = sum_u f[s + u - right, W - 1 - u] * dy[s + u - right]          with right = W - 1 - left

is a convolution of dy whose filter for row s lies on a diagonal of f.
"""

from numba import prange
from torch import Tensor

from .runtime import block_length, compute_dtype, flat, inline, kernel, launch, rows

CHANNELS = 256  # at most this many channels at a time: 31 rows of them fit into the L1 cache


def dynamic_conv(x: Tensor, filters: Tensor, left: int) -> Tensor:
    """[B, S, D] and [B, T, H, W] to [B, T, D]; see :func:`dynaconv.kernels.reference.dynamic.dynamic_conv`."""
    dtype = compute_dtype(x, filters)
    filters = filters.detach().to(dtype)
    return _correlate(rows(x, dtype), filters, 0, filters.stride(), left, filters.shape[1]).to(x.dtype)


def dynamic_input_grad(grad: Tensor, filters: Tensor, left: int, length: int) -> Tensor:
    """Gradient of the input, [B, S = length, D] in the dtype of grad."""
    dtype = compute_dtype(grad, filters)
    filters = filters.detach().to(dtype)
    sb, st, sh, sw = filters.stride()
    right = filters.shape[3] - 1 - left
    start = (filters.shape[3] - 1) * sw - right * st
    return _correlate(rows(grad, dtype), filters, start, (sb, st, sh, st - sw), right, length).to(grad.dtype)


def dynamic_filter_grad(grad: Tensor, x: Tensor, left: int, heads: int, width: int) -> Tensor:
    """Gradient of the filters, [B, T, H, W] in fp32 (fp64 where an input is fp64)."""
    dtype = compute_dtype(grad, x)
    grad, x = rows(grad, dtype), rows(x, dtype)
    B, T, D = grad.shape
    out = grad.new_empty(B, T, heads, width)
    if out.numel():
        block = block_length(B, T)
        sizes = (B, x.shape[1], T, heads, D // heads, width)
        launch(_dot, flat(out), flat(grad), grad.stride()[:2], flat(x), x.stride()[:2], sizes, left, block)
    return out


def _correlate(x: Tensor, filters: Tensor, start: int, strides: tuple[int, ...], left: int, length: int) -> Tensor:
    """out[b, t, d] = sum_w filters.flat[start + (b, t, d // C, w) . strides] * x[b, t + w - left, d]."""
    B, S, D = x.shape
    H, W = filters.shape[2:]
    out = x.new_empty(B, length, D)
    if out.numel():
        block = block_length(B, length)
        sizes = (B, S, length, H, D // H, W)
        launch(_weighted_sum, flat(out), flat(x), x.stride()[:2], flat(filters), start, strides, sizes, left, block)
    return out


@inline
def _add_rows(out, o, x, i, i_step, f, k, k_step, count, n):
    """out[o : o + n] += sum_{j < count} f[k + j k_step] * x[i + j i_step : ... + n], eight rows at a time."""
    y = out[o : o + n]
    while count >= 8:
        f0, f1, f2, f3 = f[k], f[k + k_step], f[k + 2 * k_step], f[k + 3 * k_step]
        f4, f5, f6, f7 = f[k + 4 * k_step], f[k + 5 * k_step], f[k + 6 * k_step], f[k + 7 * k_step]
        x0, x1 = x[i : i + n], x[i + i_step : i + i_step + n]
        x2, x3 = x[i + 2 * i_step : i + 2 * i_step + n], x[i + 3 * i_step : i + 3 * i_step + n]
        x4, x5 = x[i + 4 * i_step : i + 4 * i_step + n], x[i + 5 * i_step : i + 5 * i_step + n]
        x6, x7 = x[i + 6 * i_step : i + 6 * i_step + n], x[i + 7 * i_step : i + 7 * i_step + n]
        for c in range(n):
            y[c] += (f0 * x0[c] + f1 * x1[c] + f2 * x2[c] + f3 * x3[c]) + (
                f4 * x4[c] + f5 * x5[c] + f6 * x6[c] + f7 * x7[c]
            )
        i += 8 * i_step
        k += 8 * k_step
        count -= 8
    while count > 0:
        f0, x0 = f[k], x[i : i + n]
        for c in range(n):
            y[c] += f0 * x0[c]
        i += i_step
        k += k_step
        count -= 1


@kernel
def _weighted_sum(out, x, x_strides, f, start, f_strides, sizes, left, block):
    B, S, T, H, C, W = sizes
    blocks = (T + block - 1) // block
    for task in prange(B * blocks):
        b = task // blocks
        first = task % blocks * block
        for h in range(H):
            for c in range(0, C, CHANNELS):
                n = min(CHANNELS, C - c)
                for t in range(first, min(T, first + block)):
                    w = max(0, left - t)
                    o = (b * T + t) * H * C + h * C + c
                    out[o : o + n] = 0
                    i = b * x_strides[0] + (t + w - left) * x_strides[1] + h * C + c
                    k = start + b * f_strides[0] + t * f_strides[1] + h * f_strides[2] + w * f_strides[3]
                    _add_rows(out, o, x, i, x_strides[1], f, k, f_strides[3], min(W, S + left - t) - w, n)


@kernel
def _dot(out, g, g_strides, x, x_strides, sizes, left, block):
    """out[b, t, h, w] = sum_c g[b, t, h, c] * x[b, t + w - left, h, c], eight taps at a time."""
    B, S, T, H, C, W = sizes
    blocks = (T + block - 1) // block
    zero = g[0] * 0
    for task in prange(B * blocks):
        b = task // blocks
        first = task % blocks * block
        for h in range(H):
            for t in range(first, min(T, first + block)):
                o = ((b * T + t) * H + h) * W
                row = out[o : o + W]
                w = min(W, max(0, left - t))
                end = max(w, min(W, S + left - t))
                row[:w] = 0
                row[end:] = 0
                j = b * g_strides[0] + t * g_strides[1] + h * C
                y = g[j : j + C]
                i = b * x_strides[0] + (t + w - left) * x_strides[1] + h * C
                s = x_strides[1]
                while end - w >= 8:
                    x0, x1, x2, x3 = x[i:], x[i + s :], x[i + 2 * s :], x[i + 3 * s :]
                    x4, x5, x6, x7 = x[i + 4 * s :], x[i + 5 * s :], x[i + 6 * s :], x[i + 7 * s :]
                    s0, s1, s2, s3, s4, s5, s6, s7 = zero, zero, zero, zero, zero, zero, zero, zero
                    for c in range(C):
                        s0 += y[c] * x0[c]
                        s1 += y[c] * x1[c]
                        s2 += y[c] * x2[c]
                        s3 += y[c] * x3[c]
                        s4 += y[c] * x4[c]
                        s5 += y[c] * x5[c]
                        s6 += y[c] * x6[c]
                        s7 += y[c] * x7[c]
                    row[w], row[w + 1], row[w + 2], row[w + 3] = s0, s1, s2, s3
                    row[w + 4], row[w + 5], row[w + 6], row[w + 7] = s4, s5, s6, s7
                    i += 8 * s
                    w += 8
                while w < end:
                    x0 = x[i : i + C]
                    s0 = zero
                    for c in range(C):
                        s0 += y[c] * x0[c]
                    row[w] = s0
                    i += s
                    w += 1
