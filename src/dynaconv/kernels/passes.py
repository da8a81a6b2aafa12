"""What the passes of all kernels have in common: dtypes, sequences without tokens, gradients of bias and activation.

A family is the module of an operator in an implementation. Its `forward(x, *filters, bias, past, cu_seqlens, options,
dtype, grad=None)` gives the output, or with `grad`, the gradient of the output, that of the sum behind SiLU in `dtype`.
Its `backward(dz, grad, x, *filters, past, cu_seqlens, options, dtype, of_inputs, of_filters)` gives the gradients of x,
of its own filters and of `past` from `dz`, the gradient of the sum but for the factor `scale`.
"""

from collections.abc import Callable, Sequence
from types import ModuleType

from torch import Tensor

from . import Tensors
from .operators import Operator
from .options import Options, compute_dtype
from .sequences import sequence_ends

Families = Callable[[str], ModuleType]


def forward(
    families: Families, operator: Operator, tensors: Tensors, cu_seqlens: Tensor | None, options: Options
) -> Tensor:
    """The output of an operator, [B, T, D]."""
    x, *filters, bias, past = tensors
    if is_empty(x, cu_seqlens):
        return x.new_empty(x.shape)
    dtype = compute_dtype(x, *filters, bias)
    return families(operator.name).forward(x, *filters, bias, past, cu_seqlens, options, dtype)


def backward(
    families: Families, operator: Operator, grad: Tensor, tensors: Tensors, cu_seqlens: Tensor | None,
    options: Options, needed: Sequence[bool],
) -> list[Tensor | None]:  # fmt: skip
    """The gradients of the tensors that exist and need one."""
    x, *filters, bias, past = tensors
    if is_empty(x, cu_seqlens):
        return [
            t.new_zeros(t.shape) if t is not None and need else None for t, need in zip(tensors, needed, strict=True)
        ]
    family, dtype = families(operator.name), compute_dtype(x, *filters, bias)
    own = slice(1, 1 + len(operator.own))
    shared = (cu_seqlens, options, dtype)
    dz = family.forward(x, *filters, bias, past, *shared, grad=grad) if options.silu else grad
    of_inputs, of_filters = needed[0] or (needed[-1] and past is not None), any(needed[own])
    results: list[Tensor | None] = [None] * len(tensors)
    if of_inputs or of_filters:
        dx, *gradients, dpast = family.backward(dz, grad, x, *filters, past, *shared, of_inputs, of_filters)
        results[0], results[own], results[-1] = dx, gradients, dpast
    if operator.static and filters[-1] is not None and needed[-3]:
        results[-3] = families("static").backward(dz, grad, x, filters[-1], past, *shared, False, True)[1]
    if bias is not None and needed[-2]:
        db = dz.sum((0, 1), dtype=dtype)
        results[-2] = db if options.scale == 1 else db * options.scale
    return [
        None if t is None or r is None or not need else r.to(t.dtype).contiguous()
        for r, t, need in zip(results, tensors, needed, strict=True)
    ]


def is_empty(x: Tensor, cu_seqlens: Tensor | None) -> bool:
    """Whether there is no token or no channel; no kernel looks at the sequences then."""
    if x.numel() == 0 and cu_seqlens is not None:
        sequence_ends(cu_seqlens, x.shape[1])
    return x.numel() == 0
