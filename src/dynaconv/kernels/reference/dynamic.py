"""Depthwise convolution with a filter of its own for every token and head."""

from torch import Tensor

from ..options import Options, compute_dtype
from .finish import finish, padded


def dynamic_conv(
    x: Tensor, filters: Tensor, static: Tensor | None, bias: Tensor | None, past: Tensor | None, options: Options
) -> Tensor:
    """sum_w (filters[b, t, d // (D // H), w] + static[d // (D // Hs), w]) * x[b, t + w - left, d], then the options.

    Args:
        x: [B, T, D].
        filters: [B, T, H, W].
        static: [Hs, W], added to the filters of every token.
        bias: [D].
        past: [B, W-1, D], the inputs before x.
        options: padding, activation, residual, scale.

    Returns:
        [B, T, D] in the dtype of x. Products and sums are in fp32, or in fp64 where an input is fp64.
    """
    (B, T, D), (H, W) = x.shape, filters.shape[2:]
    dtype = compute_dtype(x, filters, static, bias)
    inputs, filters = padded(x, past, W, options.left, dtype), filters.to(dtype)
    taps = None if static is None else static.to(dtype).repeat_interleave(D // static.shape[0], dim=0)
    total = inputs.new_zeros(B, T, D)
    for w in range(W):
        window = inputs[:, w : w + T]
        total = total + (filters[..., w, None] * window.unflatten(-1, (H, D // H))).flatten(2)
        if taps is not None:
            total = total + taps[:, w] * window
    return finish(total, x, bias, options)
