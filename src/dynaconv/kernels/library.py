"""The Numba kernels as PyTorch operators `dynaconv::...`: autograd, fake tensors for torch.compile and export.

Gradients of gradients are not defined for these operators: PyTorch raises. `dynaconv.backend("reference")` has them.
"""

import torch
from torch import Tensor

from .cpu import dynamic, static
from .cpu.runtime import compute_dtype


@torch.library.custom_op("dynaconv::dynamic_conv", mutates_args=(), device_types="cpu")
def dynamic_conv(x: Tensor, filters: Tensor, left: int) -> Tensor:
    """:func:`dynaconv.kernels.reference.dynamic.dynamic_conv`."""
    return dynamic.dynamic_conv(x, filters, left)


@torch.library.custom_op("dynaconv::dynamic_input_grad", mutates_args=(), device_types="cpu")
def dynamic_input_grad(grad: Tensor, filters: Tensor, left: int, length: int) -> Tensor:
    """Gradient of x, [B, length, D]."""
    return dynamic.dynamic_input_grad(grad, filters, left, length)


@torch.library.custom_op("dynaconv::dynamic_filter_grad", mutates_args=(), device_types="cpu")
def dynamic_filter_grad(grad: Tensor, x: Tensor, left: int, heads: int, width: int) -> Tensor:
    """Gradient of the filters, [B, T, heads, width], at least fp32."""
    return dynamic.dynamic_filter_grad(grad, x, left, heads, width)


@torch.library.custom_op("dynaconv::static_conv", mutates_args=(), device_types="cpu")
def static_conv(x: Tensor, filters: Tensor, left: int, length: int) -> Tensor:
    """:func:`dynaconv.kernels.reference.static.static_conv`."""
    return static.static_conv(x, filters, left, length)


@torch.library.custom_op("dynaconv::static_filter_grad", mutates_args=(), device_types="cpu")
def static_filter_grad(grad: Tensor, x: Tensor, left: int, heads: int, width: int) -> Tensor:
    """Gradient of the filters, [heads, width], at least fp32."""
    return static.static_filter_grad(grad, x, left, heads, width)


@dynamic_conv.register_fake
def _(x: Tensor, filters: Tensor, left: int) -> Tensor:
    return x.new_empty(x.shape[0], filters.shape[1], x.shape[2])


@dynamic_input_grad.register_fake
def _(grad: Tensor, filters: Tensor, left: int, length: int) -> Tensor:
    return grad.new_empty(grad.shape[0], length, grad.shape[2])


@dynamic_filter_grad.register_fake
def _(grad: Tensor, x: Tensor, left: int, heads: int, width: int) -> Tensor:
    return grad.new_empty(grad.shape[0], grad.shape[1], heads, width, dtype=compute_dtype(grad, x))


@static_conv.register_fake
def _(x: Tensor, filters: Tensor, left: int, length: int) -> Tensor:
    return x.new_empty(x.shape[0], length, x.shape[2])


@static_filter_grad.register_fake
def _(grad: Tensor, x: Tensor, left: int, heads: int, width: int) -> Tensor:
    return grad.new_empty(heads, width, dtype=compute_dtype(grad, x))


def _save(ctx, inputs: tuple, output: Tensor) -> None:
    x, filters, ctx.left = inputs[:3]
    ctx.save_for_backward(x, filters)


def _dynamic_backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    x, filters = ctx.saved_tensors
    dx = df = None
    if ctx.needs_input_grad[0]:
        dx = dynamic_input_grad(grad, filters, ctx.left, x.shape[1])
    if ctx.needs_input_grad[1]:
        wide = x.to(torch.promote_types(x.dtype, filters.dtype))  # fp64 where only the filters are
        df = dynamic_filter_grad(grad, wide, ctx.left, *filters.shape[2:]).to(filters.dtype)
    return dx, df, None


def _static_backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
    x, filters = ctx.saved_tensors
    dx = df = None
    if ctx.needs_input_grad[0]:
        # The transpose of a convolution is the convolution with the flipped filter.
        dx = static_conv(grad, filters.flip(1), filters.shape[1] - 1 - ctx.left, x.shape[1])
    if ctx.needs_input_grad[1]:
        wide = x.to(torch.promote_types(x.dtype, filters.dtype))  # fp64 where only the filters are
        df = static_filter_grad(grad, wide, ctx.left, *filters.shape).to(filters.dtype)
    return dx, df, None, None


dynamic_conv.register_autograd(_dynamic_backward, setup_context=_save)
static_conv.register_autograd(_static_backward, setup_context=_save)
