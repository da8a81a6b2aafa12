"""The implementations of the operators. They know tensors and nothing of models.

- :mod:`.reference`: plain PyTorch, the definition; any device, dtype and order of derivative.
- :mod:`.cpu`: C++ kernels for CPU tensors.
- :mod:`.triton`: Triton kernels for NVIDIA and AMD GPUs.

Each is a package with the functions of :class:`Implementation`, which take inputs that `dynaconv.functional` has
validated; :mod:`.choice` says which of them serves a call, :mod:`.library` registers them with PyTorch.

Dims: B batch, T tokens, D channels, H filters (D // H consecutive channels share one), W taps, R rank, N sequences.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from .operators import Operator
from .options import Options

Tensors = Sequence[Any]  # None for those that were not given


class Implementation(Protocol):
    """What an implementation provides.

    `tensors` are those of an operator in the order of its arguments: x [B, T, D], the filters, bias [D], and `past`
    [N, W-1, D], the inputs before each sequence; None for those that it was not given.
    """

    def refuses(self, tensors: Tensors) -> str | None:
        """Why it cannot serve a call with these tensors, to follow "it cannot serve this call: "; None: it can."""

    def forward(self, operator: Operator, tensors: Tensors, cu_seqlens: Tensor | None, options: Options) -> Tensor:
        """The output [B, T, D], in the dtype of x."""

    def backward(
        self, operator: Operator, grad: Tensor, tensors: Tensors, cu_seqlens: Tensor | None, options: Options,
        needed: Sequence[bool],
    ) -> list[Tensor | None]:  # fmt: skip
        """The gradients of the tensors that exist and need one, from that of the output; None for the others."""


def transformation(tensors: Tensors) -> str | None:
    """What a kernel cannot follow: forward-mode derivatives, whose tangents it would drop, and function transforms."""
    if torch._C._are_functorch_transforms_active():
        return "a function transform (torch.func) is active, which only the reference supports"
    dual = torch.autograd.forward_ad
    if dual._current_level >= 0 and any(dual.unpack_dual(t).tangent is not None for t in tensors if t is not None):
        return "an input has a forward-mode tangent, which only the reference supports"
    return None
