"""Depthwise convolution with a filter of its own for every token and head, on the CPU."""

import torch
from torch import Tensor

from ..options import Options
from .runtime import Gradients, convolve


def forward(
    x: Tensor, filters: Tensor, static: Tensor | None, bias: Tensor | None, past: Tensor | None,
    cu_seqlens: Tensor | None, options: Options, dtype: torch.dtype, grad: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The operator with filters [B, T, H, W] plus static [Hs, W]; with `grad` the gradient of the sum behind SiLU."""
    return convolve("dynamic", x, (filters, static), bias, past, cu_seqlens, options, dtype, grad)


def backward(
    dz: Tensor, grad: Tensor, x: Tensor, filters: Tensor, static: Tensor | None, past: Tensor | None,
    cu_seqlens: Tensor | None, options: Options, dtype: torch.dtype, of_inputs: bool, of_filters: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """Gradients of x, of the filters [B, T, H, W] and of `past`, as far as they are wanted."""
    gradients = Gradients("dynamic", (filters, static), dz, grad, x, past, cu_seqlens, options, dtype)
    dx, dpast = gradients.of_inputs() if of_inputs else (None, None)
    dfilters = x.new_empty(filters.shape, dtype=dtype) if of_filters else None
    if of_filters:
        gradients.of_filters(dfilters)
    return dx, dfilters, dpast
