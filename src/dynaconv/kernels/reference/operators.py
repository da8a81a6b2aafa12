"""The definitions with the arguments of the operators `dynaconv::...`, their gradients, and the gradients of these.

`tensors` are the tensors of an operator in its order, x, the filters, bias, past; None for those it was not given.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import Tensors
from ..operators import Operator
from ..options import Options
from ..sequences import sequence_ends
from .dynamic import dynamic_conv
from .lowrank import lowrank_conv
from .static import static_conv

_DEFINITIONS: dict[str, Callable[..., Tensor]] = {
    "static": static_conv,
    "dynamic": dynamic_conv,
    "lowrank": lowrank_conv,
}


def convolve(operator: Operator, tensors: Tensors, cu_seqlens: Tensor | None, options: Options) -> Any:
    """The operator in plain PyTorch, packed sequences one after the other."""
    definition = _DEFINITIONS[operator.name]
    if cu_seqlens is None:
        return definition(*tensors, options)
    pieces = []
    for n, (start, end) in enumerate(itertools.pairwise(sequence_ends(cu_seqlens, tensors[0].shape[1]))):
        own = [
            _of_sequence(tensor, argument.dims, n, start, end)
            for tensor, argument in zip(tensors, operator.arguments, strict=True)
        ]
        pieces.append(definition(*own, options))
    return torch.cat(pieces, dim=1) if pieces else tensors[0]


def _of_sequence(tensor: Tensor | None, dims: str, n: int, start: int, end: int) -> Tensor | None:
    """What a tensor has for the tokens start..end-1 of a packed batch, which are sequence n."""
    if tensor is None:
        return None
    if dims.startswith("BT"):
        return tensor[:, start:end]
    return tensor[n : n + 1] if dims.startswith("N") else tensor


def gradients(
    operator: Operator, grad: Tensor, tensors: Tensors, cu_seqlens: Tensor | None, options: Options,
    needed: Sequence[bool],
) -> list[Tensor | None]:  # fmt: skip
    """The gradients of the tensors that need one, from that of the output, below autograd as well."""
    places = [n for n, (tensor, need) in enumerate(zip(tensors, needed, strict=True)) if tensor is not None and need]

    def function(*chosen: Tensor) -> Tensor:
        changed = list(tensors)
        for n, tensor in zip(places, chosen, strict=True):
            changed[n] = tensor
        return convolve(operator, changed, cu_seqlens, options)

    results: list[Tensor | None] = [None] * len(tensors)
    # Not torch.autograd: in the body of a registered operator it records nothing.
    pullback = torch.func.vjp(function, *[tensors[n] for n in places])[1]
    for n, gradient in zip(places, pullback(grad), strict=True):
        results[n] = gradient
    return results


def gradients_of_gradients(
    operator: Operator, grad: Tensor, tensors: Tensors, cu_seqlens: Tensor | None, options: Options,
    upstream: Sequence[Tensor | None], needed: Sequence[bool],
) -> list[Tensor | None]:  # fmt: skip
    """Gradients of `grad` and the tensors, from those of the gradients of the tensors, where `needed`.

    Where PyTorch records (`create_graph`), they can be differentiated again.
    """
    recorded = torch.is_grad_enabled()

    def leaf(tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        return tensor.view_as(tensor) if recorded and tensor.requires_grad else tensor.detach().requires_grad_()

    with torch.enable_grad():
        dy, *inputs = (leaf(tensor) for tensor in (grad, *tensors))
        leaves = [t for t, need in zip((dy, *inputs), needed, strict=True) if t is not None and need]
        pairs = [(t, v) for t, v in zip(inputs, upstream, strict=True) if t is not None and v is not None]
        if not pairs:
            return [None] * len(needed)
        y = convolve(operator, inputs, cu_seqlens, options)
        first = torch.autograd.grad(y, [t for t, _ in pairs], dy, create_graph=True, allow_unused=True)
        known = [(f, v) for f, (_, v) in zip(first, pairs, strict=True) if f is not None]
        second = torch.autograd.grad(
            [f for f, _ in known], leaves, [v for _, v in known], create_graph=recorded, allow_unused=True
        )
    results = iter(second)
    return [next(results) if t is not None and need else None for t, need in zip((dy, *inputs), needed, strict=True)]
