"""Depthwise convolution with a filter of its own for every token and head."""

import torch
import torch.nn.functional as F
from torch import Tensor


def dynamic_conv(x: Tensor, filters: Tensor, left: int) -> Tensor:
    """y[b, t, d] = sum_w filters[b, t, d // (D // H), w] * x[b, t + w - left, d].

    Args:
        x: [B, S, D].
        filters: [B, T, H, W].
        left: padding on the left; x is 0 outside 0..S-1.

    Returns:
        [B, T, D] in the dtype of x. Products and sums are in fp32, or in fp64 where an input is fp64.
    """
    B, S, D = x.shape
    _, T, H, W = filters.shape
    dtype = torch.promote_types(torch.promote_types(x.dtype, filters.dtype), torch.float32)
    filters = filters.to(dtype).unsqueeze(-1)
    padded = F.pad(x.to(dtype), (0, 0, left, max(0, T + W - 1 - left - S))).unflatten(-1, (H, D // H))
    y = padded.new_zeros(B, T, H, D // H)
    for w in range(W):
        y = y + filters[:, :, :, w] * padded[:, w : w + T]
    return y.flatten(2).to(x.dtype)
