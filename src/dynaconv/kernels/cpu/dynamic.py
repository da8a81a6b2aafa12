"""Depthwise convolution with a filter of its own for every token and head, on the CPU."""

import torch
from torch import Tensor

from ..options import Options
from .runtime import Stream, checked_ends, computed, kinds, launch, numbers, rows, storage, stored


def forward(
    x: Tensor, filters: Tensor, static: Tensor | None, bias: Tensor | None, state: Tensor | None,
    cu_seqlens: Tensor | None, options: Options, dtype: torch.dtype, grad: Tensor | None = None,
    stream: Stream | None = None,
) -> Tensor:  # fmt: skip
    """The operator with filters [B, T, H, W] plus static [Hs, W]; with `grad` the gradient of the sum behind SiLU."""
    kind = storage(x, state, dtype)
    inputs = stored(x, kind)
    out = torch.empty_like(inputs, dtype=inputs.dtype if grad is None else dtype, memory_format=torch.contiguous_format)
    launch(
        "dynamic", inputs, out, filters.shape[3], options, *_filters(filters, static), *kinds(inputs, inputs), 0,
        residual=inputs if options.residual else None, grad=stored(grad, kind), past=stored(state, kind),
        bias=computed(bias, dtype), ends=checked_ends(cu_seqlens, x.shape[1]), stream=stream,
    )  # fmt: skip
    return out.to(x.dtype) if grad is None else out


def backward(
    dz: Tensor, grad: Tensor, x: Tensor, filters: Tensor, static: Tensor | None, state: Tensor | None,
    cu_seqlens: Tensor | None, options: Options, dtype: torch.dtype, of_inputs: bool, of_filters: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Gradients of x, of the filters [B, T, H, W] and of the state; those that are not wanted are empty."""
    H, W = filters.shape[2:]
    kind, ends = storage(x, state, dtype), checked_ends(cu_seqlens, x.shape[1])
    inputs, z = stored(x, kind), stored(dz, dtype if options.silu else kind)
    dx, df, dstate = inputs.new_empty(0), inputs.new_empty(0, dtype=dtype), None
    if of_inputs:
        dx = inputs.new_empty(x.shape)
        dstate = None if state is None else inputs.new_zeros(state.shape, dtype=dtype)
        launch(
            "dynamic", z, dx, W, options._replace(silu=False), *_filters(filters, static), *kinds(z, inputs), 1,
            left=W - 1 - options.left, residual=stored(grad, kind) if options.residual else None, ends=ends,
            out_past=dstate,
        )  # fmt: skip
    if of_filters:
        df = inputs.new_empty(filters.shape, dtype=dtype)
        launch(
            "dynamic_gradient", inputs, None, W, options, rows(z), df.data_ptr(), H, *kinds(z, inputs), ends=ends,
            past=stored(state, kind),
        )  # fmt: skip
    return dx.to(x.dtype), df.to(filters.dtype), dstate


def _filters(filters: Tensor, static: Tensor | None) -> tuple[bytes, bytes, int, int]:
    heads = 1 if static is None else len(static)
    return numbers(filters, 0, 1, 2, 3), numbers(static, None, None, 0, 1), filters.shape[2], heads
