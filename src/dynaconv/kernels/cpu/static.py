"""Depthwise convolution with the same filters for every token, on the CPU."""

import torch
from torch import Tensor

from ..options import Options
from .runtime import Stream, checked_ends, computed, groups, kinds, launch, numbers, rows, storage, stored


def forward(
    x: Tensor, filters: Tensor, bias: Tensor | None, state: Tensor | None, cu_seqlens: Tensor | None, options: Options,
    dtype: torch.dtype, grad: Tensor | None = None, stream: Stream | None = None,
) -> Tensor:  # fmt: skip
    """The operator with filters [H, W]; with `grad` the gradient of the sum behind SiLU instead, in `dtype`."""
    kind = storage(x, state, dtype)
    inputs = stored(x, kind)
    out = torch.empty_like(inputs, dtype=inputs.dtype if grad is None else dtype, memory_format=torch.contiguous_format)
    launch(
        "static", inputs, out, filters.shape[1], options, numbers(filters, None, None, 0, 1), len(filters),
        *kinds(inputs, inputs), 0, residual=inputs if options.residual else None, grad=stored(grad, kind),
        past=stored(state, kind), bias=computed(bias, dtype), ends=checked_ends(cu_seqlens, x.shape[1]), stream=stream,
    )  # fmt: skip
    return out.to(x.dtype) if grad is None else out


def backward(
    dz: Tensor, grad: Tensor, x: Tensor, filters: Tensor, state: Tensor | None, cu_seqlens: Tensor | None,
    options: Options, dtype: torch.dtype, of_inputs: bool, of_filters: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Gradients of x, of the filters and of the state, from those of the sum, `dz`, and of the output, `grad`.

    Those that are not wanted are empty.
    """
    (H, W), D = filters.shape, x.shape[2]
    kind, ends = storage(x, state, dtype), checked_ends(cu_seqlens, x.shape[1])
    inputs, z = stored(x, kind), stored(dz, dtype if options.silu else kind)
    dx, df, dstate = inputs.new_empty(0), filters.new_empty(0), None
    if of_inputs:
        dx = inputs.new_empty(x.shape)
        dstate = None if state is None else inputs.new_zeros(state.shape, dtype=dtype)
        launch(
            "static", z, dx, W, options._replace(silu=False), numbers(filters, None, None, 0, 1), H, *kinds(z, inputs),
            1, left=W - 1 - options.left, residual=stored(grad, kind) if options.residual else None, ends=ends,
            out_past=dstate,
        )  # fmt: skip
    if of_filters:
        count = groups(x.shape[0] * x.shape[1], W)
        partial = inputs.new_empty(count, W, D, dtype=dtype)
        launch(
            "static_gradient", inputs, None, W, options, rows(z), partial.data_ptr(), count, *kinds(z, inputs),
            ends=ends, past=stored(state, kind),
        )  # fmt: skip
        total = partial.sum(0).unflatten(1, (H, -1)).sum(2).T * options.scale
        df = total.to(filters.dtype).contiguous()
    return dx.to(x.dtype), df, dstate
