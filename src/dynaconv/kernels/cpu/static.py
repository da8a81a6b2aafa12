"""Depthwise convolution with the same filters for every token, on the CPU."""

from numba import prange
from torch import Tensor

from .runtime import block_length, compute_dtype, flat, inline, kernel, launch, rows

CHANNELS = 128  # at most this many channels at a time: 31 rows of x and of filters fit into the L1 cache
GROUPS = 4  # partial sums of the filter gradient over the batch; fixed, so that the sum does not depend on the threads


def static_conv(x: Tensor, filters: Tensor, left: int, length: int) -> Tensor:
    """[B, S, D] and [H, W] to [B, T, D]; see :func:`dynaconv.kernels.reference.static.static_conv`."""
    dtype = compute_dtype(x, filters)
    inputs = rows(x, dtype)
    B, S, D = x.shape
    H, W = filters.shape
    taps = filters.detach().to(dtype).T.repeat_interleave(D // H, dim=1)
    out = inputs.new_empty(B, length, D)
    if out.numel():
        sizes = (B, S, length, D, W)
        launch(
            _convolve, flat(out), flat(inputs), inputs.stride()[:2], flat(taps), sizes, left, block_length(B, length)
        )
    return out.to(x.dtype)


def static_filter_grad(grad: Tensor, x: Tensor, left: int, heads: int, width: int) -> Tensor:
    """Gradient of the filters, [H, W] in fp32 (fp64 where an input is fp64)."""
    dtype = compute_dtype(grad, x)
    grad, x = rows(grad, dtype), rows(x, dtype)
    B, T, D = grad.shape
    partial = grad.new_zeros(GROUPS, width, D)
    if grad.numel() and x.numel():
        launch(
            _products, flat(partial), flat(grad), grad.stride()[:2], flat(x), x.stride()[:2],
            (B, x.shape[1], T, D, width), left,
        )  # fmt: skip
    return partial.sum(0).unflatten(1, (heads, D // heads)).sum(2).T.contiguous()


@inline
def _add_products(out, o, a, i, i_step, x, j, j_step, count, n):
    """out[o : o + n] += sum_{r < count} a[i + r i_step : ... + n] * x[j + r j_step : ... + n], four rows at a time."""
    y = out[o : o + n]
    while count >= 4:
        a0, a1, a2, a3 = a[i : i + n], a[i + i_step :], a[i + 2 * i_step :], a[i + 3 * i_step :]
        x0, x1, x2, x3 = x[j : j + n], x[j + j_step :], x[j + 2 * j_step :], x[j + 3 * j_step :]
        for c in range(n):
            y[c] += a0[c] * x0[c] + a1[c] * x1[c] + a2[c] * x2[c] + a3[c] * x3[c]
        i += 4 * i_step
        j += 4 * j_step
        count -= 4
    while count > 0:
        a0, x0 = a[i : i + n], x[j : j + n]
        for c in range(n):
            y[c] += a0[c] * x0[c]
        i += i_step
        j += j_step
        count -= 1


@kernel
def _convolve(out, x, x_strides, taps, sizes, left, block):
    B, S, T, D, W = sizes
    blocks = (T + block - 1) // block
    for task in prange(B * blocks):
        b = task // blocks
        first = task % blocks * block
        for d in range(0, D, CHANNELS):
            n = min(CHANNELS, D - d)
            for t in range(first, min(T, first + block)):
                w = max(0, left - t)
                o = (b * T + t) * D + d
                out[o : o + n] = 0
                j = b * x_strides[0] + (t + w - left) * x_strides[1] + d
                _add_products(out, o, taps, w * D + d, D, x, j, x_strides[1], min(W, S + left - t) - w, n)


@kernel
def _products(partial, g, g_strides, x, x_strides, sizes, left):
    """partial[b % GROUPS, w, d] += sum_t g[b, t, d] * x[b, t + w - left, d]."""
    B, S, T, D, W = sizes
    columns = 32
    blocks = (D + columns - 1) // columns
    for task in prange(GROUPS * blocks):
        group = task // blocks
        d = task % blocks * columns
        n = min(columns, D - d)
        for b in range(group, B, GROUPS):
            for first in range(0, T, 64):
                for w in range(W):
                    t = max(first, left - w)
                    count = min(T, first + 64, S + left - w) - t
                    i = b * g_strides[0] + t * g_strides[1] + d
                    j = b * x_strides[0] + (t + w - left) * x_strides[1] + d
                    o = (group * W + w) * D + d
                    _add_products(partial, o, g, i, g_strides[1], x, j, x_strides[1], count, n)
