"""Depthwise convolution whose filters are codes [B, T, R] times a basis [R, D, W], on the CPU."""

import torch
from torch import Tensor

from ..options import Options
from .runtime import Stream, checked_ends, computed, groups, kinds, launch, numbers, rows, storage, stored


def forward(
    x: Tensor, codes: Tensor, basis: Tensor, static: Tensor | None, bias: Tensor | None, state: Tensor | None,
    cu_seqlens: Tensor | None, options: Options, dtype: torch.dtype, grad: Tensor | None = None,
    stream: Stream | None = None,
) -> Tensor:  # fmt: skip
    """The operator, static [Hs, W] added to the filters; with `grad` the gradient of the sum behind SiLU instead."""
    kind = storage(x, state, dtype)
    inputs = stored(x, kind)
    out = torch.empty_like(inputs, dtype=inputs.dtype if grad is None else dtype, memory_format=torch.contiguous_format)
    launch(
        "lowrank", inputs, out, basis.shape[2], options, *_filters(codes, basis, static), *kinds(inputs, inputs), 0,
        residual=inputs if options.residual else None, grad=stored(grad, kind), past=stored(state, kind),
        bias=computed(bias, dtype), ends=checked_ends(cu_seqlens, x.shape[1]), stream=stream,
    )  # fmt: skip
    return out.to(x.dtype) if grad is None else out


def backward(
    dz: Tensor, grad: Tensor, x: Tensor, codes: Tensor, basis: Tensor, static: Tensor | None, state: Tensor | None,
    cu_seqlens: Tensor | None, options: Options, dtype: torch.dtype, of_inputs: bool, of_filters: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Gradients of x, codes, basis and the state; those that are not wanted are empty."""
    (B, T, D), (R, _, W) = x.shape, basis.shape
    kind, ends = storage(x, state, dtype), checked_ends(cu_seqlens, T)
    inputs, z = stored(x, kind), stored(dz, dtype if options.silu else kind)
    dx, dcodes, dbasis, dstate = inputs.new_empty(0), codes.new_empty(0), basis.new_empty(0), None
    if of_inputs:
        dx = inputs.new_empty(x.shape)
        dstate = None if state is None else inputs.new_zeros(state.shape, dtype=dtype)
        launch(
            "lowrank", z, dx, W, options._replace(silu=False), *_filters(codes, basis, static), *kinds(z, inputs), 1,
            residual=stored(grad, kind) if options.residual else None, ends=ends, out_past=dstate,
        )  # fmt: skip
    if of_filters:
        count = groups(B * T, R * W)
        dcodes = inputs.new_empty(codes.shape, dtype=dtype)
        partial = inputs.new_empty(count, R, W, -(-D // 16) * 16, dtype=dtype)
        launch(
            "lowrank_gradient", inputs, None, W, options, rows(z), _filters(codes, basis, None)[0], R,
            dcodes.data_ptr(), partial.data_ptr(), count, partial.shape[3], *kinds(z, inputs),
            ends=ends, past=stored(state, kind),
        )  # fmt: skip
        dcodes = dcodes.to(codes.dtype)
        dbasis = (partial.sum(0)[..., :D].transpose(1, 2) * options.scale).to(basis.dtype).contiguous()
    return dx.to(x.dtype), dcodes, dbasis, dstate


def _filters(codes: Tensor, basis: Tensor, static: Tensor | None) -> tuple[bytes, int, int]:
    """Codes, basis and static filters one after the other, R, and the heads of the static ones."""
    records = (numbers(codes, 0, 1, 2, None), numbers(basis, 0, None, 1, 2), numbers(static, None, None, 0, 1))
    return b"".join(records), basis.shape[0], 1 if static is None else len(static)
