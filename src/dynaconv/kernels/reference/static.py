"""Depthwise convolution with the same filters for every token."""

from torch import Tensor

from ..options import Options, compute_dtype
from .finish import finish, padded


def static_conv(x: Tensor, filters: Tensor, bias: Tensor | None, past: Tensor | None, options: Options) -> Tensor:
    """sum_w filters[d // (D // H), w] * x[b, t + w - left, d], then what `options` say.

    Args:
        x: [B, T, D].
        filters: [H, W].
        bias: [D].
        past: [B, W-1, D], the inputs before x.
        options: padding, activation, residual, scale.

    Returns:
        [B, T, D] in the dtype of x.
    """
    T, (H, W) = x.shape[1], filters.shape
    dtype = compute_dtype(x, filters, bias)
    inputs = padded(x, past, W, options.left, dtype)
    taps = filters.to(dtype).repeat_interleave(x.shape[2] // H, dim=0)
    total = taps[:, 0] * inputs[:, :T]
    for w in range(1, W):
        total = total + taps[:, w] * inputs[:, w : w + T]
    return finish(total, x, bias, options)
