"""Which implementation computes a call, and what becomes of states."""

import contextlib
import functools
import importlib
import importlib.util
import sys
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .kernels.availability import cpu_kernels_run
from .kernels.cpu import FAMILIES, Stream
from .kernels.options import Options, compute_dtype
from .kernels.reference.operators import convolve
from .kernels.sequences import final_states, next_states

_BACKENDS = ("reference", "cpu", "triton")


class _Forced(threading.local):
    backend: str | None = None


_forced = _Forced()


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Force an implementation inside a `with` block, in this thread: "reference", "cpu" (C++) or "triton".

    Without it, CPU tensors take the C++ kernels, those on NVIDIA and AMD GPUs the Triton kernels, and all others the
    reference, which is plain PyTorch. What kernels cannot do takes the reference in any case: function transforms,
    forward-mode and second derivatives, CPU tensors where the kernels were not compiled (which the logger
    "dynaconv" says once), fp64 in Triton.

    Raises:
        ValueError: the name is of no implementation.
    """
    if name not in _BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(_BACKENDS)}; got {name!r}")
    previous, _forced.backend = _forced.backend, name
    try:
        yield
    finally:
        _forced.backend = previous


class Call(NamedTuple):
    """What the keywords of an operator come to."""

    options: Options
    bias: Tensor | None = None
    initial_state: Tensor | None = None
    cu_seqlens: Tensor | None = None
    return_final_state: bool = False
    buffer: Tensor | None = None
    indices: Tensor | None = None

    def past(self, width: int) -> Tensor | None:
        """The inputs before each sequence, [N, W-1, D]."""
        if self.buffer is None:
            return self.initial_state
        past = self.buffer[:, self.buffer.shape[1] - width + 1 :]
        if self.indices is None:
            return past
        if len(past):
            return past.index_select(0, self.indices.clamp(min=0))
        return past.new_zeros(len(self.indices), *past.shape[1:])

    def move_on(self, x: Tensor, y: Tensor) -> Tensor:
        """Overwrite the buffer, after the operator has succeeded; y with zeros where a sequence has no row in it."""
        if self.buffer is not None:
            next_states(self.buffer, x, self.cu_seqlens, self.indices)
        return y if self.indices is None else y.masked_fill(self._padding_tokens(y), 0)

    def _padding_tokens(self, y: Tensor) -> Tensor:
        """[B or 1, T or 1, 1]: tokens of sequences without a row in the buffer."""
        padding = torch.as_tensor(self.indices) < 0
        if self.cu_seqlens is None:
            return padding[:, None, None]
        sequence = torch.searchsorted(self.cu_seqlens[1:].long(), torch.arange(y.shape[1], device=y.device), right=True)
        return padding[sequence][None, :, None]


def run(name: str, call: Call, width: int, x: Tensor, *filters: Any) -> Tensor | tuple[Tensor, Tensor]:
    """The operator on the implementation that serves these tensors, and what becomes of states."""
    tensors = (x, *filters, call.bias, call.initial_state, call.buffer)
    trained = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    if call.buffer is not None and trained:
        raise ValueError(
            "state is overwritten in place and carries no gradient: use it under torch.no_grad(), "
            "or train with initial_state and return_final_state"
        )
    implementation = _implementation(*tensors)
    if implementation == "cpu" and not trained and not call.return_final_state and x.numel() and _are_plain(tensors):
        return _run_at_once(name, call, width, x, *filters)
    past = call.past(width)
    if implementation == "reference":
        y = convolve(name, (x, *filters, call.bias, past), call.cu_seqlens, call.options)
    else:
        from .kernels import library

        if not torch.compiler.is_compiling() and "torch.distributed.tensor" in sys.modules:
            importlib.import_module(f"{__package__}.kernels.sharding")
        arguments = (x, *filters, call.bias, past, call.cu_seqlens, *call.options, implementation)
        y = getattr(library, name)(*arguments)
    final = final_states(x, past, width - 1, call.cu_seqlens) if call.return_final_state else None
    y = call.move_on(x, y)
    return y if final is None else (y, final)


def _are_plain(tensors: tuple[Any, ...]) -> bool:
    """Whether nothing has to see the call: no mode, no subclass of tensors, no compiler."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or any(t is not None and type(t) is not Tensor and type(t) is not torch.nn.Parameter for t in tensors)
    )


def _run_at_once(name: str, call: Call, width: int, x: Tensor, *filters: Any) -> Tensor:
    """The CPU kernel without PyTorch's dispatcher, which takes longer than the kernel does for one token."""
    dtype, buffer, stream = compute_dtype(x, *filters, call.bias), call.buffer, None
    if buffer is not None and buffer.dtype == x.dtype and compute_dtype(x) == dtype and buffer.stride(2) == 1:
        stream = Stream(buffer, None if call.indices is None else call.indices.long().contiguous())
    past = call.past(width) if stream is None else None
    y = FAMILIES[name](x, *filters, call.bias, past, call.cu_seqlens, call.options, dtype, stream=stream)
    return call.move_on(x, y) if stream is None else y


def _implementation(x: Tensor, *others: Tensor | None) -> str:
    """The implementation that serves these tensors."""
    forced, device = _forced.backend, x.device.type
    if forced == "cpu" and device != "cpu":
        raise ValueError(f'backend("cpu") needs CPU tensors; x is on {x.device}')
    if forced == "triton" and not _triton_serves(device):
        raise ValueError(
            'backend("triton") needs the package triton and tensors on a GPU, or CPU tensors with TRITON_INTERPRET=1 '
            f"in the environment; x is on {x.device}"
        )
    # Registered operators drop forward-mode tangents and refuse function transforms; the reference has both.
    dual = torch.autograd.forward_ad
    if (
        forced == "reference"
        or torch._C._are_functorch_transforms_active()
        or (
            dual._current_level >= 0
            and any(dual.unpack_dual(t).tangent is not None for t in (x, *others) if t is not None)
        )
    ):
        return "reference"
    if forced == "triton" or (forced is None and device == "cuda" and _triton_serves("cuda")):
        return "reference" if compute_dtype(x, *others) == torch.float64 else "triton"
    if device not in ("cpu", "meta"):
        return "reference"
    if torch.compiler.is_compiling() or device == "meta":
        return "cpu"
    return "cpu" if cpu_kernels_run() else "reference"


@functools.cache
def _triton_serves(device: str) -> bool:
    """Whether Triton is installed and runs on such a device: on the CPU its interpreter does."""
    if device not in ("cpu", "cuda") or importlib.util.find_spec("triton") is None:
        return False
    from .kernels.triton.runtime import INTERPRETED

    return device == "cuda" or INTERPRETED
