"""Depthwise convolution with the same filters for every token, on the CPU."""

import torch
from torch import Tensor

from ..options import Options
from .runtime import Gradients, convolve, groups, total


def forward(
    x: Tensor, filters: Tensor, bias: Tensor | None, past: Tensor | None, cu_seqlens: Tensor | None, options: Options,
    dtype: torch.dtype, grad: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The operator with filters [H, W]; with `grad` the gradient of the sum behind SiLU instead, in `dtype`."""
    return convolve("static", x, (filters,), bias, past, cu_seqlens, options, dtype, grad)


def backward(
    dz: Tensor, grad: Tensor, x: Tensor, filters: Tensor, past: Tensor | None, cu_seqlens: Tensor | None,
    options: Options, dtype: torch.dtype, of_inputs: bool, of_filters: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """Gradients of x, of the filters and of `past`, as far as they are wanted."""
    (B, T, D), (H, W) = x.shape, filters.shape
    gradients = Gradients("static", (filters,), dz, grad, x, past, cu_seqlens, options, dtype)
    dx, dpast = gradients.of_inputs() if of_inputs else (None, None)
    dfilters = None
    if of_filters:
        partial = x.new_empty(groups(B * T, W), W, D, dtype=dtype)
        gradients.of_filters(None, partial)
        dtaps = total(partial, options)
        dfilters = (dtaps if H == D else dtaps.unflatten(1, (H, -1)).sum(2)).T
    return dx, dfilters, dpast
