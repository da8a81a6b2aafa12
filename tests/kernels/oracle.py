"""The definition once more, as loops: the oracle of the reference, and the tolerance rule for everything else."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

import dynaconv


def loop_conv(x: Tensor, filters: Tensor, left: int) -> Tensor:
    """y[b, t, d] = sum_w filters[b, t, d // (D // H), w] * x[b, t + w - left, d], one number at a time."""
    B, T, D = x.shape
    H, W = filters.shape[2:]
    x, filters, y = x.numpy(), filters.numpy(), np.zeros(x.shape)
    for b in range(B):
        for t in range(T):
            for d in range(D):
                for w in range(W):
                    if 0 <= t + w - left < T:
                        y[b, t, d] += filters[b, t, d // (D // H), w] * x[b, t + w - left, d]
    return torch.from_numpy(y)


def outputs_and_gradients(function: Callable[..., Tensor], inputs: list[Tensor], grad: Tensor | None) -> list[Tensor]:
    """The output of a function and the gradients of its inputs; grad None: of the sum of the output."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    y = function(*leaves)
    gradients = torch.autograd.grad(y.sum() if grad is None else y, leaves, grad, allow_unused=True)
    return [y.detach(), *(torch.zeros_like(x) if g is None else g for x, g in zip(leaves, gradients, strict=True))]


def assert_as_accurate(actual: list[Tensor], eager: list[Tensor], exact: list[Tensor], sizes: list[Tensor]) -> None:
    """Errors against fp64 are at most twice those of the eager reference in the same dtype.

    The allowance beside the factor covers cases where the reference happens to be exact, or where terms cancel: four
    roundings of the sum of the absolute values of all terms, `sizes`. Sums in another order differ by that much.
    """
    for i, (a, e, x, size) in enumerate(zip(actual, eager, exact, sizes, strict=True)):
        assert a.dtype == e.dtype
        assert a.shape == x.shape
        if x.numel() == 0:
            continue
        allowance = 4 * torch.finfo(a.dtype).eps * size.max().item()
        error, bound = (a.double() - x).abs().max().item(), 2 * (e.double() - x).abs().max().item() + allowance
        assert error <= bound, f"{['output', 'dx', 'dfilters'][i]}: error {error:.3g}, allowed {bound:.3g}"


def reference(operator: Callable[..., Tensor], **options) -> Callable[..., Tensor]:
    """The reference implementation of an operator with its options."""

    def function(*inputs: Tensor) -> Tensor:
        with dynaconv.backend("reference"):
            return operator(*inputs, **options)

    return function
