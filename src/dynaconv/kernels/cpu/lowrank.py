"""Depthwise convolution whose filters are codes [B, T, R] times a basis [R, D, W], on the CPU."""

import torch
from torch import Tensor

from ..options import Options
from .runtime import Gradients, Stream, convolve, groups, numbers


def forward(
    x: Tensor, codes: Tensor, basis: Tensor, static: Tensor | None, bias: Tensor | None, state: Tensor | None,
    cu_seqlens: Tensor | None, options: Options, dtype: torch.dtype, grad: Tensor | None = None,
    stream: Stream | None = None,
) -> Tensor:  # fmt: skip
    """The operator, static [Hs, W] added to the filters; with `grad` the gradient of the sum behind SiLU instead."""
    arguments, width = _filters(codes, basis, static), basis.shape[2]
    return convolve("lowrank", arguments, x, width, bias, state, cu_seqlens, options, dtype, grad, stream)


def backward(
    dz: Tensor, grad: Tensor, x: Tensor, codes: Tensor, basis: Tensor, static: Tensor | None, state: Tensor | None,
    cu_seqlens: Tensor | None, options: Options, dtype: torch.dtype, of_inputs: bool, of_filters: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Gradients of x, codes, basis and the state; those that are not wanted are empty."""
    (B, T, D), (R, _, W) = x.shape, basis.shape
    gradients = Gradients(dz, grad, x, state, cu_seqlens, options, dtype, W)
    dx, dcodes, dbasis, dstate = x.new_empty(0), codes.new_empty(0), basis.new_empty(0), None
    if of_inputs:
        dx, dstate = gradients.of_inputs("lowrank", _filters(codes, basis, static))
    if of_filters:
        count = groups(B * T, R * W)
        dcodes = x.new_empty(codes.shape, dtype=dtype)
        partial = x.new_empty(count, R, W, -(-D // 16) * 16, dtype=dtype)
        records = _filters(codes, basis, None)[0]
        gradients.of_filters("lowrank", records, R, dcodes.data_ptr(), partial.data_ptr(), count, partial.shape[3])
        dcodes = dcodes.to(codes.dtype)
        dbasis = (partial.sum(0)[..., :D].transpose(1, 2) * options.scale).to(basis.dtype).contiguous()
    return dx.to(x.dtype), dcodes, dbasis, dstate


def _filters(codes: Tensor, basis: Tensor, static: Tensor | None) -> tuple[bytes, int, int]:
    """Codes, basis and static filters one after the other, R, and the heads of the static ones."""
    records = (numbers(codes, 0, 1, 2, None), numbers(basis, 0, None, 1, 2), numbers(static, None, None, 0, 1))
    return b"".join(records), basis.shape[0], 1 if static is None else len(static)
