"""The definition of each operator in plain PyTorch."""

from collections.abc import Sequence

from torch import Tensor

from .. import Tensors
from ..operators import Operator
from ..options import Options
from .operators import convolve, gradients


def refuses(tensors: Tensors) -> str | None:  # noqa: ARG001 (the contract's)
    """Nothing."""
    return None


def forward(operator: Operator, tensors: Tensors, cu_seqlens: Tensor | None, options: Options) -> Tensor:
    """The output, [B, T, D]."""
    return convolve(operator, tensors, cu_seqlens, options)


def backward(
    operator: Operator, grad: Tensor, tensors: Tensors, cu_seqlens: Tensor | None, options: Options,
    needed: Sequence[bool],
) -> list[Tensor | None]:  # fmt: skip
    """The gradients of the tensors that exist and need one."""
    results = gradients(operator, grad, tensors, cu_seqlens, options, needed)
    return [None if result is None else result.contiguous() for result in results]
