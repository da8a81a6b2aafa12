"""Calls that nothing has to see: no compiler, tracer, profiler, dispatch mode or subclass of tensors."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

_TYPES = (Tensor, torch.nn.Parameter, type(None))


def nothing_looks() -> bool:
    """Whether no part of PyTorch records or replaces the operators that are called."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._is_tracing()
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
        or torch._C._autograd._profiler_enabled()
    )


def are_plain(tensors: Sequence[Tensor | None]) -> bool:
    """Whether nothing looks, and the numbers of the tensors lie in the memory of a device as their strides say."""
    return nothing_looks() and all(
        type(t) in _TYPES and (t is None or torch._C._dispatch_keys(t).raw_repr() in _plain_keys(t.device.type))
        for t in tensors
    )


@functools.cache
def _plain_keys(device: str) -> set[int]:
    """Dispatch keys of tensors that are nothing else: not negated when they are read, wrapped, batched, on "meta"."""
    if device not in ("cpu", "cuda"):
        return set()
    with torch.inference_mode():
        inference = torch.empty(0, device=device)
    with torch.inference_mode(mode=False):
        usual = torch.empty(0, device=device)
    return {torch._C._dispatch_keys(tensor).raw_repr() for tensor in (inference, usual)}
