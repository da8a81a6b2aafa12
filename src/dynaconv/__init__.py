"""Lightweight, dynamic and dynamic short convolutions: a depthwise convolution whose filter may depend on the token.

    y[b, t, d] = sum_w filter[b, t, d, w] * x[b, t + w - P, d]

Start with :mod:`dynaconv.functional`: its docstrings are the definition. Submodules load on first use, so that
``import dynaconv`` costs little more than ``import torch``.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import data, functional, grafting, interop, models, nn, tasks
    from .functional import backend, dynamic_conv, lowrank_conv, rollback, static_conv
    from .grafting import from_pretrained, graft, ungraft

__version__ = "0.1.0"
__all__ = [
    "backend",
    "data",
    "dynamic_conv",
    "from_pretrained",
    "functional",
    "graft",
    "grafting",
    "interop",
    "lowrank_conv",
    "models",
    "nn",
    "rollback",
    "static_conv",
    "tasks",
    "ungraft",
]

_SUBMODULES = {"data", "functional", "grafting", "interop", "models", "nn", "tasks"}
_FUNCTIONS = {
    "backend": "functional",
    "dynamic_conv": "functional",
    "lowrank_conv": "functional",
    "rollback": "functional",
    "static_conv": "functional",
    "from_pretrained": "grafting",
    "graft": "grafting",
    "ungraft": "grafting",
}


def __getattr__(name: str) -> object:
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _FUNCTIONS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    function = getattr(importlib.import_module(f"{__name__}.{_FUNCTIONS[name]}"), name)
    globals()[name] = function  # asked once
    return function


def __dir__() -> list[str]:
    return __all__
