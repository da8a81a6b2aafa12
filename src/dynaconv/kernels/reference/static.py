"""Depthwise convolution with the same filters for every token."""

from torch import Tensor

from .dynamic import dynamic_conv


def static_conv(x: Tensor, filters: Tensor, left: int, length: int) -> Tensor:
    """y[b, t, d] = sum_w filters[d // (D // H), w] * x[b, t + w - left, d].

    Args:
        x: [B, S, D].
        filters: [H, W].
        left: padding on the left; x is 0 outside 0..S-1.
        length: T, the number of outputs.

    Returns:
        [B, T, D] in the dtype of x.
    """
    return dynamic_conv(x, filters.expand(x.shape[0], length, *filters.shape), left)
