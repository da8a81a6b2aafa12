"""Triton kernels for NVIDIA and AMD GPUs, or for CPU tensors in Triton's interpreter."""

import functools
import importlib.util
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from .. import Tensors, passes, transformation
from ..operators import Operator
from ..options import Options, compute_dtype


def refuses(tensors: Tensors) -> str | None:
    """Why the kernels cannot serve a call with these tensors."""
    device = tensors[0].device if tensors[0] is not None else torch.device("cpu")
    if not _serves(device.type):
        return (
            "it needs the package triton and tensors on a GPU, or CPU tensors with TRITON_INTERPRET=1 in the "
            f"environment; x is on {device}"
        )
    if compute_dtype(*tensors) == torch.float64:
        return "it computes in fp32, and an input is fp64"
    return transformation(tensors)


def forward(operator: Operator, tensors: Tensors, cu_seqlens: Tensor | None, options: Options) -> Tensor:
    """The output, [B, T, D]."""
    return passes.forward(_family, operator, tensors, cu_seqlens, options)


def backward(
    operator: Operator, grad: Tensor, tensors: Tensors, cu_seqlens: Tensor | None, options: Options,
    needed: Sequence[bool],
) -> list[Tensor | None]:  # fmt: skip
    """The gradients of the tensors that exist and need one."""
    return passes.backward(_family, operator, grad, tensors, cu_seqlens, options, needed)


def _family(name: str) -> ModuleType:
    return import_module(f"{__name__}.{name}")


@functools.cache
def _serves(device: str) -> bool:
    """Whether Triton is installed and runs on such a device: on the CPU its interpreter does."""
    if device not in ("cpu", "cuda") or importlib.util.find_spec("triton") is None:
        return False
    from .runtime import INTERPRETED

    return device == "cuda" or INTERPRETED
