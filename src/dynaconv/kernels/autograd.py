"""Derivatives of calls that nothing has to see: an operator in PyTorch's autograd, past its dispatcher."""

from typing import Any

import torch
from torch import Tensor

from .choice import IMPLEMENTATIONS
from .operators import Operator
from .options import Options
from .plain import are_plain


class Convolution(torch.autograd.Function):
    """Forward and backward pass of an operator on an implementation."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, operator: Operator, cu_seqlens: Tensor | None, options: Options, implementation: str,
        *tensors: Tensor | None,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(cu_seqlens, *tensors)
        ctx.operator, ctx.options, ctx.implementation = operator, options, implementation
        return IMPLEMENTATIONS[implementation].forward(operator, tensors, cu_seqlens, options)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:  # noqa: D102
        (grad,) = gradients
        cu_seqlens, *tensors = ctx.saved_tensors
        needed = ctx.needs_input_grad[4:]
        if not torch.is_grad_enabled() and are_plain((grad, *tensors)):
            own = IMPLEMENTATIONS[ctx.implementation]
            results = own.backward(ctx.operator, grad, tensors, cu_seqlens, ctx.options, needed)
        else:  # has derivatives itself
            from . import library

            results = library.backward(ctx.operator, grad, tensors, cu_seqlens, ctx.options, ctx.implementation, needed)
        return None, None, None, None, *results
