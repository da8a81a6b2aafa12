"""The shared library of the kernels, and how it is called."""

import ctypes
import functools
import os
import struct
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..options import Options, compute_dtype
from ..sequences import sequence_ends
from .build import LIBRARIES, digest

_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_CALL, _NUMBERS, _ROWS = struct.Struct("12q5q7qd5q"), struct.Struct("6q"), struct.Struct("3q")  # as in tiles.h
_NONE = (0, 0, 0)
# Of every kernel: r a record, p a place in memory, i an integer.
_KINDS = {"r": ctypes.c_char_p, "p": ctypes.c_void_p, "i": ctypes.c_int64}
_SIGNATURES = {
    "static": "rriiii",
    "static_gradient": "rrpiii",
    "dynamic": "rrriiiii",
    "dynamic_gradient": "rrpiii",
    "lowrank": "rriiiii",
    "lowrank_gradient": "rrrippiiii",
}


class Stream(NamedTuple):
    """A buffer [M, S, D] that is read as what came before x and moves on behind the operator; rows of [N] int64."""

    buffer: Tensor
    indices: Tensor | None


@functools.cache
def library() -> ctypes.CDLL:
    """The kernels for the highest level of instructions that this processor has, or for that in $DYNACONV_CPU.

    Raises:
        OSError: there is none.
    """
    prefix = f"dynaconv-{digest()}-"
    found = {path.stem.removeprefix(prefix): path for path in sorted(LIBRARIES.glob(f"{prefix}*.so"))}
    if not found:
        raise OSError("they are not compiled; with a C++ compiler, python -m dynaconv.kernels.cpu does it")
    lowest = ctypes.CDLL(str(next(iter(found.values()))))
    level = os.environ.get("DYNACONV_CPU") or f"v{lowest.dynaconv_level()}"
    if level not in found and len(found) == 1 and "DYNACONV_CPU" not in os.environ:
        level = next(iter(found))
    if level not in found:
        raise OSError(f"there are none for {level}, only for {', '.join(found)}")
    kernels = ctypes.CDLL(str(found[level]))
    for name, arguments in _SIGNATURES.items():
        getattr(kernels, f"dynaconv_{name}").argtypes = [_KINDS[kind] for kind in arguments]
    torch_library = next(Path(torch.__file__).parent.joinpath("lib").glob("libtorch_cpu.*"))
    # Without the symbol, which torch has had since 2.10, the kernels run on one thread.
    if pool := getattr(ctypes.CDLL(str(torch_library)), "torch_parallel_for", None):
        kernels.dynaconv_threads(ctypes.cast(pool, ctypes.c_void_p))
    return kernels


def convolve(
    kernel: str, filters: tuple, x: Tensor, width: int, bias: Tensor | None, state: Tensor | None,
    cu_seqlens: Tensor | None, options: Options, dtype: torch.dtype, grad: Tensor | None, stream: Stream | None,
) -> Tensor:  # fmt: skip
    """The operator of a kernel; with `grad` the gradient of the sum behind SiLU instead, in `dtype`.

    Args:
        kernel: its name.
        filters: its arguments behind the call, up to the dtypes.
        x: [B, T, D].
        width: W.
        bias: [D].
        state: [N, W-1, D], the inputs before each sequence.
        cu_seqlens: ends of packed sequences.
        options: of the operator.
        dtype: of computation.
        grad: [B, T, D], gradient of the output.
        stream: stands for `state`.
    """
    kind = _storage(x, state, dtype)
    inputs = _stored(x, kind)
    out = inputs.new_empty(x.shape, dtype=kind if grad is None else dtype)
    _launch(
        kernel, inputs, out, width, options, *filters, *_kinds(inputs, inputs), 0,
        residual=inputs if options.residual else None, grad=_stored(grad, kind), past=_stored(state, kind),
        bias=None if bias is None else bias.to(dtype).contiguous(), ends=_ends(cu_seqlens, x.shape[1]), stream=stream,
    )  # fmt: skip
    return out.to(x.dtype) if grad is None else out


class Gradients:
    """What the backward passes share: the tensors as kernels read them, and the gradients of x and of the state.

    Args:
        dz: [B, T, D], the gradient of the sum.
        grad: [B, T, D], that of the output.
        x: [B, T, D].
        state: [N, W-1, D].
        cu_seqlens: ends of packed sequences.
        options: of the operator.
        dtype: of computation.
        width: W.
    """

    def __init__(
        self, dz: Tensor, grad: Tensor, x: Tensor, state: Tensor | None, cu_seqlens: Tensor | None, options: Options,
        dtype: torch.dtype, width: int,
    ):  # fmt: skip
        self.kind, self.dtype, self.options, self.width = _storage(x, state, dtype), dtype, options, width
        self.x, self.z = _stored(x, self.kind), _stored(dz, dtype if options.silu else self.kind)
        self.grad, self.state, self.ends = grad, state, _ends(cu_seqlens, x.shape[1])

    def of_inputs(self, kernel: str, filters: tuple, left: int | None = None) -> tuple[Tensor, Tensor | None]:
        """Gradients of x, and of the state where there is one, by the same kernel with filters the other way round."""
        dx = self.x.new_empty(self.x.shape)
        dstate = None if self.state is None else dx.new_zeros(self.state.shape, dtype=self.dtype)
        _launch(
            kernel, self.z, dx, self.width, self.options._replace(silu=False), *filters, *_kinds(self.z, dx), 1,
            left=left, residual=_stored(self.grad, self.kind) if self.options.residual else None, ends=self.ends,
            out_past=dstate,
        )  # fmt: skip
        return dx, dstate

    def of_filters(self, kernel: str, *arguments: Any) -> None:
        """Write the gradients of filters to the places among the arguments, which follow the call and dz."""
        _launch(
            f"{kernel}_gradient", self.x, None, self.width, self.options, _ROWS.pack(*_place(self.z)), *arguments,
            *_kinds(self.z, self.x), ends=self.ends, past=_stored(self.state, self.kind),
        )  # fmt: skip


def numbers(tensor: Tensor | None, *axes: int | None) -> bytes:
    """Filters, codes or a basis: where their rows, tokens, heads and taps are; None: they have none."""
    if tensor is None:
        return _NUMBERS.pack(0, 0, 0, 0, 0, 0)
    strides = tensor.stride()
    chosen = [0 if axis is None else strides[axis] for axis in axes]
    return _NUMBERS.pack(tensor.data_ptr(), _DTYPES[tensor.dtype], *chosen)


def groups(tokens: int, width: int) -> int:
    """How many partial sums of gradients over tokens there are: it depends on sizes alone, and so do the bits."""
    return max(1, min(64, tokens // max(1, 20 * width)))


def _launch(
    kernel: str, x: Tensor, out: Tensor | None, width: int, options: Options, *arguments: Any, left: int | None = None,
    residual: Tensor | None = None, grad: Tensor | None = None, past: Tensor | None = None, bias: Tensor | None = None,
    ends: Tensor | None = None, out_past: Tensor | None = None, stream: Stream | None = None,
) -> None:  # fmt: skip
    """Call a kernel; the tensors are those of `Call` in tiles.h, and live until it returns.

    Behind the call stand `arguments`: integers, places of tensors that are written, records. `left` is that of the
    options unless it is given, and `stream` stands for `past`.
    """
    B, T, D = x.shape
    indices, before, buffer = None, _place(past), (*_NONE, 0, 0)
    if stream is not None:
        state, indices = stream
        place, bytes_each = _place(state), state.element_size()
        spare = (state.shape[1] - width + 1) * place[2] * bytes_each
        before, buffer = (place[0] + spare, *place[1:]), (*place, state.shape[1], bytes_each)
    call = _CALL.pack(
        *_place(x), *_place(residual), *_place(grad), *before, _pointer(indices), _pointer(ends), _pointer(bias),
        _pointer(out), _pointer(out_past), B, T, D, width, B if ends is None else len(ends) - 1,
        options.left if left is None else left, options.silu, options.scale, *buffer,
    )  # fmt: skip
    getattr(library(), f"dynaconv_{kernel}")(call, *arguments)


def _kinds(tensor: Tensor, output: Tensor) -> tuple[int, int]:
    """The dtypes of what is summed and of the output, as the kernels number them."""
    return _DTYPES[tensor.dtype], _DTYPES[output.dtype]


def _storage(x: Tensor, state: Tensor | None, dtype: torch.dtype) -> torch.dtype:
    """The dtype in which kernels read x, what came before it, and gradients; `dtype` is that of computation."""
    alike = compute_dtype(x) == dtype and (state is None or state.dtype == x.dtype)
    return x.dtype if alike else dtype


def _stored(tensor: Tensor | None, dtype: torch.dtype) -> Any:
    """The tensor as kernels read it: in this dtype, its channels one after the other."""
    if tensor is None:
        return None
    tensor = tensor if tensor.dtype == dtype else tensor.to(dtype)
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] <= 1 else tensor.contiguous()


def _ends(cu_seqlens: Tensor | None, length: int) -> Tensor | None:
    """Ends of packed sequences as kernels read them; ValueError where they do not fit the tokens."""
    return None if cu_seqlens is None else torch.tensor(sequence_ends(cu_seqlens, length))


def _pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _place(tensor: Tensor | None) -> tuple[int, ...]:
    return _NONE if tensor is None else (tensor.data_ptr(), *tensor.stride()[:2])
