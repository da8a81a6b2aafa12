"""Depthwise convolution with the same filters for every token, on the CPU."""

import torch
from torch import Tensor

from ..options import Options
from .runtime import Gradients, Stream, convolve, groups, numbers


def forward(
    x: Tensor, filters: Tensor, bias: Tensor | None, state: Tensor | None, cu_seqlens: Tensor | None, options: Options,
    dtype: torch.dtype, grad: Tensor | None = None, stream: Stream | None = None,
) -> Tensor:  # fmt: skip
    """The operator with filters [H, W]; with `grad` the gradient of the sum behind SiLU instead, in `dtype`."""
    width = filters.shape[1]
    return convolve("static", _filters(filters), x, width, bias, state, cu_seqlens, options, dtype, grad, stream)


def backward(
    dz: Tensor, grad: Tensor, x: Tensor, filters: Tensor, state: Tensor | None, cu_seqlens: Tensor | None,
    options: Options, dtype: torch.dtype, of_inputs: bool, of_filters: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Gradients of x, of the filters and of the state, from those of the sum, `dz`, and of the output, `grad`.

    Those that are not wanted are empty.
    """
    (B, T, D), (H, W) = x.shape, filters.shape
    gradients = Gradients(dz, grad, x, state, cu_seqlens, options, dtype, W)
    dx, df, dstate = x.new_empty(0), filters.new_empty(0), None
    if of_inputs:
        dx, dstate = gradients.of_inputs("static", _filters(filters), left=W - 1 - options.left)
    if of_filters:
        count = groups(B * T, W)
        partial = x.new_empty(count, W, D, dtype=dtype)
        gradients.of_filters("static", partial.data_ptr(), count)
        total = partial.sum(0).unflatten(1, (H, -1)).sum(2).T * options.scale
        df = total.to(filters.dtype).contiguous()
    return dx.to(x.dtype), df, dstate


def _filters(filters: Tensor) -> tuple[bytes, int]:
    return numbers(filters, None, None, 0, 1), len(filters)
