"""Depthwise convolution whose filters are products of codes and a basis."""

import torch
from torch import Tensor

from ..options import Options, compute_dtype
from .finish import finish, padded


def lowrank_conv(
    x: Tensor, codes: Tensor, basis: Tensor, static: Tensor | None, bias: Tensor | None, past: Tensor | None,
    options: Options,
) -> Tensor:  # fmt: skip
    """sum_w (sum_r codes[b, t, r] basis[r, d, w] + static[d // (D // Hs), w]) * x[b, t + w - left, d], the options.

    Args:
        x: [B, T, D].
        codes: [B, T, R].
        basis: [R, D, W].
        static: [Hs, W], added to the filters of every token.
        bias: [D].
        past: [B, W-1, D], the inputs before x.
        options: padding, activation, residual, scale.

    Returns:
        [B, T, D] in the dtype of x.
    """
    T, D, W = *x.shape[1:], basis.shape[2]
    dtype = compute_dtype(x, codes, basis, static, bias)
    inputs, codes, basis = padded(x, past, W, options.left, dtype), codes.to(dtype), basis.to(dtype)
    taps = None if static is None else static.to(dtype).repeat_interleave(D // static.shape[0], dim=0)
    total = inputs.new_zeros(x.shape)
    for w in range(W):
        with torch.autocast(x.device.type, enabled=False):  # it would round the product
            filters = codes @ basis[..., w]
        total = total + (filters if taps is None else filters + taps[:, w]) * inputs[:, w : w + T]
    return finish(total, x, bias, options)
