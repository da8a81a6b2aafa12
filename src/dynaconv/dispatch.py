"""How a call reaches an implementation, and what becomes of states.

A call that nothing has to see goes past PyTorch's dispatcher, whose time a token would not pay for. What has been
validated once for shapes, strides, dtypes and options is remembered as a :class:`.cpu.Convolution`.
"""

import contextlib
import importlib
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .checks import check_rows
from .kernels import cpu
from .kernels.choice import IMPLEMENTATIONS, choose
from .kernels.operators import Operator
from .kernels.options import Options, compute_dtype
from .kernels.plain import are_plain, nothing_looks
from .kernels.sequences import final_states, next_states


class _Forced(threading.local):
    def __init__(self):  # in each thread; an attribute of the class would become another under torch.compile
        self.backend: str | None = None


_forced = _Forced()
_KEPT = 4096  # remembered calls
_remembered: dict[Any, "_Remembered | _Trained"] = {}


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Force an implementation inside a `with` block, in this thread: "reference", "cpu" (C++) or "triton".

    Without it, CPU tensors take the C++ kernels, those on NVIDIA and AMD GPUs the Triton kernels, and all others the
    reference, which is plain PyTorch. What kernels cannot do takes the reference too, and the logger "dynaconv" says
    so once: function transforms, forward-mode derivatives, kernels that were not compiled, fp64 in Triton. Second
    derivatives are those of the reference, and `torch.onnx.export` gets it too.

    Raises:
        ValueError: the name is of no implementation; inside the block, where the implementation cannot serve a call.
    """
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"backend must be one of {', '.join(IMPLEMENTATIONS)}; got {name!r}")
    previous, _forced.backend = _forced.backend, name
    try:
        yield
    finally:
        _forced.backend = previous


class Call(NamedTuple):
    """What the keywords of an operator come to."""

    options: Options
    width: int
    bias: Tensor | None = None
    initial_state: Tensor | None = None
    cu_seqlens: Tensor | None = None
    return_final_state: bool = False
    buffer: Tensor | None = None
    indices: Tensor | None = None

    def past(self) -> Tensor | None:
        """The inputs before each sequence, [N, W-1, D]."""
        if self.buffer is None:
            return self.initial_state
        past = self.buffer[:, self.buffer.shape[1] - self.width + 1 :]
        if self.indices is None:
            return past
        if len(past):
            return past.index_select(0, self.indices.clamp(min=0))
        return past.new_zeros(len(self.indices), *past.shape[1:])

    def move_on(self, x: Tensor, y: Tensor) -> Tensor:
        """Overwrite the buffer, after the operator has succeeded; y with zeros where a sequence has no row in it."""
        if self.indices is not None:
            y = y.masked_fill(self._padding_tokens(y, self.indices), 0)
        if self.buffer is not None:
            next_states(self.buffer, x, self.cu_seqlens, self.indices)
        return y

    def _padding_tokens(self, y: Tensor, indices: Tensor) -> Tensor:
        """[B or 1, T or 1, 1]: tokens of sequences without a row in the buffer."""
        padding = indices < 0
        if self.cu_seqlens is None:
            return padding[:, None, None]
        sequence = torch.searchsorted(self.cu_seqlens[1:].long(), torch.arange(y.shape[1], device=y.device), right=True)
        return padding[sequence][None, :, None]


class _Remembered(NamedTuple):
    """A call whose tensors the CPU kernels can read as they are."""

    convolution: cpu.Convolution
    counts_versions: bool

    def __call__(self, x: Tensor, filters: Sequence[Any], keywords: dict[str, Any]) -> Any:
        state, indices, ends = keywords.get("state"), keywords.get("state_indices"), keywords.get("cu_seqlens")
        if ends is not None:
            ends = cpu.ends_of(ends, x)
        if indices is not None:
            indices = indices.long().contiguous()
        y = self.convolution(
            x, filters, keywords.get("bias"), keywords.get("initial_state"), ends, None, state, indices
        )
        if y is None:  # this check says what is wrong
            check_rows("state_indices", keywords["state_indices"], "state", len(keywords["state"]))
            raise RuntimeError("the CPU kernels refuse rows that are valid: please report it")
        if state is not None and self.counts_versions:
            torch.autograd.graph.increment_version(state)
        return y


class _Trained(NamedTuple):
    """A call with gradients, whose tensors the CPU kernels serve."""

    operator: Operator
    options: Options
    final: int | None
    """Inputs of the final state, where it is returned."""

    def __call__(self, x: Tensor, filters: Sequence[Any], keywords: dict[str, Any]) -> Any:
        past, ends = keywords.get("initial_state"), keywords.get("cu_seqlens")
        y = _forward(self.operator, (x, *filters, keywords.get("bias"), past), ends, self.options, "cpu", True)
        return y if self.final is None else (y, final_states(x, past, self.final, ends))


def run(
    operator: Operator, validate: Callable[..., Call], normalized: Callable[[Tensor], Tensor] | None,
    keywords: dict[str, Any], *tensors: Any,
) -> Any:  # fmt: skip
    """An operator on the implementation that serves these tensors, and what becomes of states.

    Args:
        operator: which one.
        validate: a function of `tensors` and `keywords`, which raises where they are invalid.
        normalized: of the first filters.
        keywords: those that all operators share.
        tensors: x and the filters.
    """
    key = _key(operator, normalized, tensors, keywords) if nothing_looks() else None
    remembered = None if key is None else _remembered.get(key)
    call: Any = validate(*tensors, **keywords) if remembered is None else None
    x, *filters = tensors
    if normalized is not None:
        filters[0] = normalized(filters[0])
    if remembered is not None:
        return remembered(x, filters, keywords)
    given = (x, *filters, call.bias, call.initial_state, call.buffer)
    trained = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given)
    if call.buffer is not None and trained:
        raise ValueError(
            "state is overwritten in place and carries no gradient: use it under torch.no_grad(), "
            "or train with initial_state and return_final_state"
        )
    name = choose(_forced.backend, x, given[1:])
    if key is not None and name == "cpu" and are_plain((*given, call.cu_seqlens, call.indices)):
        remembered = _remember(operator, call, x, filters, trained)
        if remembered is not None:
            if len(_remembered) >= _KEPT:
                _remembered.clear()
            _remembered[key] = remembered
            return remembered(x, filters, keywords)
    past = call.past()
    y = _forward(operator, (x, *filters, call.bias, past), call.cu_seqlens, call.options, name, trained)
    final = final_states(x, past, call.width - 1, call.cu_seqlens) if call.return_final_state else None
    y = call.move_on(x, y)
    return y if final is None else (y, final)


def _forward(
    operator: Operator, tensors: Sequence[Any], cu_seqlens: Tensor | None, options: Options, name: str, trained: bool
) -> Any:
    """The output of an operator on an implementation."""
    if name == "reference":  # has all derivatives
        return IMPLEMENTATIONS[name].forward(operator, tensors, cu_seqlens, options)
    if are_plain(tensors):
        if not trained:
            return IMPLEMENTATIONS[name].forward(operator, tensors, cu_seqlens, options)
        from .kernels.autograd import Convolution

        return Convolution.apply(operator, cu_seqlens, options, name, *tensors)
    from .kernels import library

    if not torch.compiler.is_compiling() and "torch.distributed.tensor" in sys.modules:
        importlib.import_module(f"{__package__}.kernels.sharding")
    return library.forward(operator, tensors, cu_seqlens, options, name)


def _remember(
    operator: Operator, call: Call, x: Tensor, filters: Sequence[Any], trained: bool
) -> "_Remembered | _Trained | None":
    """What serves all calls like this one, on the CPU kernels; it keeps no tensor alive."""
    if trained:
        return _Trained(operator, call.options, call.width - 1 if call.return_final_state else None)
    dtype, buffer = compute_dtype(x, *filters, call.bias), call.buffer
    before = call.initial_state if buffer is None else buffer
    if call.return_final_state or x.numel() == 0 or not cpu.prepared(x, call.bias, before, dtype):
        return None
    if buffer is not None and buffer.is_inference() and not torch.is_inference_mode_enabled():
        return None  # PyTorch refuses to overwrite it
    sequences = len(x) if call.cu_seqlens is None else len(call.cu_seqlens) - 1
    convolution = cpu.Convolution(
        operator.name, x, filters, call.initial_state, sequences, call.options, dtype, buffer=buffer
    )
    return _Remembered(convolution, buffer is not None and not buffer.is_inference())


def _key(
    operator: Operator, normalized: Callable[[Tensor], Tensor] | None, tensors: Sequence[Any], keywords: dict[str, Any]
) -> tuple[Any, ...] | None:
    """What validity and plan of a call depend on; None where the call is not remembered."""
    if _forced.backend not in (None, "cpu"):
        return None
    key: list[Any] = [operator.name, normalized, torch.is_inference_mode_enabled()]
    recorded, trained = torch.is_grad_enabled(), False
    try:
        for tensor in tensors:
            if tensor is None:
                key.append(None)
                continue
            trained = trained or (recorded and tensor.requires_grad)
            key += _like(tensor)
        for name, value in keywords.items():
            if isinstance(value, Tensor):
                trained = trained or (recorded and value.requires_grad)
                key += (name, *_like(value))
            else:
                key += (name, type(value), value)
        key.append(trained)
        hash(found := tuple(key))
    except (AttributeError, RuntimeError, TypeError):  # whatever is no dense tensor, or has no hash
        return None
    return found


def _like(tensor: Tensor) -> tuple[Any, ...]:
    return type(tensor), torch._C._dispatch_keys(tensor).raw_repr(), tensor.shape, tensor.stride(), tensor.dtype
