"""What people write or install instead of this library. All causal, for x [B, T, D]."""

import contextlib
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Function = Callable[..., Any]  # of x and filters, or of x, codes and basis; returns y


def unfold_static(x: Tensor, filters: Tensor) -> Tensor:
    """Sliding windows and one contraction, with filters [H, W]."""
    H, W = filters.shape
    return torch.einsum("bthcw,hw->bthc", _windows(x, W).unflatten(2, (H, -1)), filters).flatten(2)


def unfold_dynamic(x: Tensor, filters: Tensor) -> Tensor:
    """Sliding windows and one contraction, with filters [B, T, H, W]."""
    H, W = filters.shape[2:]
    return torch.einsum("bthcw,bthw->bthc", _windows(x, W).unflatten(2, (H, -1)), filters).flatten(2)


def unfold_softmax(x: Tensor, filters: Tensor) -> Tensor:
    """The same with a softmax over the taps before."""
    return unfold_dynamic(x, filters.softmax(-1))


def unfold_lowrank(x: Tensor, codes: Tensor, basis: Tensor) -> Tensor:
    """The filters of every token and channel, [B, T, D, W], then sliding windows; codes [B, T, R], basis [R, D, W]."""
    filters = torch.einsum("btr,rdw->btdw", codes, basis)
    return (_windows(x, basis.shape[2]) * filters).sum(-1)  # an einsum would be a matrix product for every element


def depthwise_conv1d(x: Tensor, filters: Tensor) -> Tensor:
    """PyTorch's own depthwise convolution, which is channels-first, with filters [H, W]."""
    D, (H, W) = x.shape[2], filters.shape
    weight = filters.repeat_interleave(D // H, 0).unsqueeze(1)
    return F.conv1d(F.pad(x.transpose(1, 2), (W - 1, 0)), weight, groups=D).transpose(1, 2)


def installed_kernels() -> dict[str, Function]:
    """CUDA kernels for filters [D, W] with W <= 4, of the packages that can be imported."""
    kernels: dict[str, Function] = {}
    if channels_first := _imported("causal_conv1d", "causal_conv1d_fn"):
        # A transpose of [B, T, D] is the channels-last layout, for which the package has kernels of its own.
        kernels["causal-conv1d"] = lambda x, filters: channels_first(x.transpose(1, 2), filters).transpose(1, 2)
    if with_state := _imported("fla.modules.convolution", "causal_conv1d"):
        kernels["fla"] = lambda x, filters: with_state(x, filters)[0]
    return kernels


def _imported(module: str, name: str) -> Any:
    """A name of a module, None where it cannot be imported."""
    with contextlib.suppress(ImportError):
        return getattr(import_module(module), name)
    return None


def _windows(x: Tensor, width: int) -> Tensor:
    """The inputs of every output: a view, [B, T, D, W]."""
    return F.pad(x, (0, 0, width - 1, 0)).unfold(1, width, 1)
