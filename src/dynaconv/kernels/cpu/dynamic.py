"""Depthwise convolution with a filter of its own for every token and head, on the CPU."""

import torch
from torch import Tensor

from ..options import Options
from .runtime import Gradients, Stream, convolve, numbers


def forward(
    x: Tensor, filters: Tensor, static: Tensor | None, bias: Tensor | None, state: Tensor | None,
    cu_seqlens: Tensor | None, options: Options, dtype: torch.dtype, grad: Tensor | None = None,
    stream: Stream | None = None,
) -> Tensor:  # fmt: skip
    """The operator with filters [B, T, H, W] plus static [Hs, W]; with `grad` the gradient of the sum behind SiLU."""
    arguments, width = _filters(filters, static), filters.shape[3]
    return convolve("dynamic", arguments, x, width, bias, state, cu_seqlens, options, dtype, grad, stream)


def backward(
    dz: Tensor, grad: Tensor, x: Tensor, filters: Tensor, static: Tensor | None, state: Tensor | None,
    cu_seqlens: Tensor | None, options: Options, dtype: torch.dtype, of_inputs: bool, of_filters: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Gradients of x, of the filters [B, T, H, W] and of the state; those that are not wanted are empty."""
    H, W = filters.shape[2:]
    gradients = Gradients(dz, grad, x, state, cu_seqlens, options, dtype, W)
    dx, df, dstate = x.new_empty(0), x.new_empty(0, dtype=dtype), None
    if of_inputs:
        dx, dstate = gradients.of_inputs("dynamic", _filters(filters, static), left=W - 1 - options.left)
    if of_filters:
        df = x.new_empty(filters.shape, dtype=dtype)
        gradients.of_filters("dynamic", df.data_ptr(), H)
    return dx.to(x.dtype), df.to(filters.dtype), dstate


def _filters(filters: Tensor, static: Tensor | None) -> tuple[bytes, bytes, int, int]:
    heads = 1 if static is None else len(static)
    return numbers(filters, 0, 1, 2, 3), numbers(static, None, None, 0, 1), filters.shape[2], heads
