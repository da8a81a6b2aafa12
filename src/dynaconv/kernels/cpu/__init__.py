"""C++ kernels for CPU tensors: `static.py`, `dynamic.py`, `lowrank.py` call those in the `.cpp` files of their names.

`build.py` compiles them into a shared library for each level of instructions; `runtime.py` loads the highest that the
processor has. `call.h` says what the kernels are given, `tiles.h` and `vector.h` how they compute.
"""

import functools
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from .. import Tensors, passes, transformation
from ..operators import Operator
from ..options import Options
from . import dynamic, lowrank, static
from .runtime import Convolution, ends_of, library, prepared

__all__ = ["Convolution", "backward", "ends_of", "forward", "prepared", "refuses"]

_FAMILIES: dict[str, ModuleType] = {"static": static, "dynamic": dynamic, "lowrank": lowrank}


def refuses(tensors: Tensors) -> str | None:
    """Why the kernels cannot serve a call with these tensors."""
    device = tensors[0].device.type if tensors[0] is not None else "cpu"
    if device not in ("cpu", "meta"):
        return f"it needs CPU tensors; x is on {device}"
    if reason := transformation(tensors):
        return reason
    # Whoever compiles may run elsewhere.
    return None if torch.compiler.is_compiling() or device == "meta" else _missing()


def forward(operator: Operator, tensors: Tensors, cu_seqlens: Tensor | None, options: Options) -> Tensor:
    """The output, [B, T, D]."""
    return passes.forward(_FAMILIES.__getitem__, operator, tensors, cu_seqlens, options)


def backward(
    operator: Operator, grad: Tensor, tensors: Tensors, cu_seqlens: Tensor | None, options: Options,
    needed: Sequence[bool],
) -> list[Tensor | None]:  # fmt: skip
    """The gradients of the tensors that exist and need one."""
    return passes.backward(_FAMILIES.__getitem__, operator, grad, tensors, cu_seqlens, options, needed)


@functools.cache
def _missing() -> str | None:
    """Why the kernels do not load on this machine."""
    try:
        library()
    except OSError as error:
        return f"the kernels do not load: {error}"
    return None
