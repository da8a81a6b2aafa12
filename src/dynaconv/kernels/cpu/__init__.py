"""C++ kernels for CPU tensors: `static.py`, `dynamic.py`, `lowrank.py` call those in the `.cpp` files of their names.

`build.py` compiles them into a shared library for each level of instructions; `runtime.py` loads the highest that the
processor has. `tiles.h` says what the kernels are given, `vector.h` how they compute.
"""

from collections.abc import Callable

from torch import Tensor

from . import dynamic, lowrank, static
from .runtime import Stream

FAMILIES: dict[str, Callable[..., Tensor]] = {
    "static_conv": static.forward,
    "dynamic_conv": dynamic.forward,
    "lowrank_conv": lowrank.forward,
}

__all__ = ["FAMILIES", "Stream"]
