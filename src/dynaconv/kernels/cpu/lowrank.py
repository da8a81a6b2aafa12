"""Depthwise convolution whose filters are codes [B, T, R] times a basis [R, D, W], on the CPU."""

import torch
from torch import Tensor

from ..options import Options
from .runtime import Gradients, convolve, groups, total


def forward(
    x: Tensor, codes: Tensor, basis: Tensor, static: Tensor | None, bias: Tensor | None, past: Tensor | None,
    cu_seqlens: Tensor | None, options: Options, dtype: torch.dtype, grad: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The operator, static [Hs, W] added to the filters; with `grad` the gradient of the sum behind SiLU instead."""
    return convolve("lowrank", x, (codes, basis, static), bias, past, cu_seqlens, options, dtype, grad)


def backward(
    dz: Tensor, grad: Tensor, x: Tensor, codes: Tensor, basis: Tensor, static: Tensor | None, past: Tensor | None,
    cu_seqlens: Tensor | None, options: Options, dtype: torch.dtype, of_inputs: bool, of_filters: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """Gradients of x, codes, basis and `past`, as far as they are wanted."""
    (B, T, D), (R, _, W) = x.shape, basis.shape
    gradients = Gradients("lowrank", (codes, basis, static), dz, grad, x, past, cu_seqlens, options, dtype)
    dx, dpast = gradients.of_inputs() if of_inputs else (None, None)
    dcodes, dbasis = None, None
    if of_filters:
        dcodes = x.new_empty(codes.shape, dtype=dtype)
        partial = x.new_empty(groups(B * T, R * W), R, W, -(-D // 16) * 16, dtype=dtype)
        gradients.of_filters(dcodes, partial)
        dbasis = total(partial, options)[..., :D].transpose(1, 2)
    return dx, dcodes, dbasis, dpast
