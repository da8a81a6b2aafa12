"""The definitions with the arguments of the operators `dynaconv::...`, their gradients, and the gradients of these.

`tensors` are the tensors of an operator in its order, x, the filters, bias, state; None for those it was not given.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..options import Options
from ..sequences import sequence_ends
from .dynamic import dynamic_conv
from .lowrank import lowrank_conv
from .static import static_conv

_DEFINITIONS: dict[str, Callable[..., Tensor]] = {
    "static_conv": static_conv, "dynamic_conv": dynamic_conv, "lowrank_conv": lowrank_conv,
}  # fmt: skip

Tensors = Sequence[Any]


def convolve(name: str, tensors: Tensors, cu_seqlens: Tensor | None, options: Options) -> Tensor:
    """The operator `name` in plain PyTorch, packed sequences one after the other."""
    definition, (x, *filters, bias, state) = _DEFINITIONS[name], tensors
    if cu_seqlens is None:
        return definition(x, *filters, bias, state, options)
    pieces = []
    ends = sequence_ends(cu_seqlens, x.shape[1])
    for n, (start, end) in enumerate(itertools.pairwise(ends)):
        own = list(filters)
        if name != "static_conv":  # the first are per token
            own[0] = own[0][:, start:end]
        past = None if state is None else state[n : n + 1]
        pieces.append(definition(x[:, start:end], *own, bias, past, options))
    return torch.cat(pieces, dim=1) if pieces else x


def gradients(
    name: str, grad: Tensor, tensors: Tensors, cu_seqlens: Tensor | None, options: Options, wanted: Sequence[bool]
) -> list[Tensor | None]:
    """The gradients of the wanted tensors, from that of the output, below autograd as well."""
    places = [n for n, (tensor, want) in enumerate(zip(tensors, wanted, strict=True)) if tensor is not None and want]

    def function(*chosen: Tensor) -> Tensor:
        changed = list(tensors)
        for n, tensor in zip(places, chosen, strict=True):
            changed[n] = tensor
        return convolve(name, changed, cu_seqlens, options)

    results: list[Tensor | None] = [None] * len(tensors)
    # Not torch.autograd: in the body of a registered operator it records nothing.
    pullback = torch.func.vjp(function, *[tensors[n] for n in places])[1]
    for n, gradient in zip(places, pullback(grad), strict=True):
        results[n] = gradient
    return results


def gradients_of_gradients(
    name: str, grad: Tensor, tensors: Tensors, cu_seqlens: Tensor | None, options: Options,
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
        y = convolve(name, inputs, cu_seqlens, options)
        first = torch.autograd.grad(y, [t for t, _ in pairs], dy, create_graph=True, allow_unused=True)
        known = [(f, v) for f, (_, v) in zip(first, pairs, strict=True) if f is not None]
        second = torch.autograd.grad(
            [f for f, _ in known], leaves, [v for _, v in known], create_graph=recorded, allow_unused=True
        )
    results = iter(second)
    return [next(results) if t is not None and need else None for t, need in zip((dy, *inputs), needed, strict=True)]
