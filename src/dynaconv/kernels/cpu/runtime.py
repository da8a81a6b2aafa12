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


def launch(
    kernel: str, x: Tensor, out: Tensor | None, width: int, options: Options, *arguments: Any, left: int | None = None,
    residual: Tensor | None = None, grad: Tensor | None = None, past: Tensor | None = None, bias: Tensor | None = None,
    ends: Tensor | None = None, out_past: Tensor | None = None, stream: Stream | None = None,
) -> None:  # fmt: skip
    """Call a kernel; the tensors are those of `Call` in tiles.h, and live until it returns.

    Args:
        kernel: name of the function.
        x: [B, T, D].
        out: [B, T, D], or nothing.
        width: W.
        options: of the operator.
        *arguments: what follows the call: integers, places of tensors that are written, records of `numbers` or `rows`.
        left: where it is not that of the options.
        residual: added behind the activation.
        grad: gradient of the output.
        past: the inputs before each sequence.
        bias: added to the sum.
        ends: ends of packed sequences, int64.
        out_past: gradient of `past`.
        stream: stands for `past`, in the dtype of x.
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


def numbers(tensor: Tensor | None, *axes: int | None) -> bytes:
    """Filters, codes or a basis: where their rows, tokens, heads and taps are; None: they have none."""
    if tensor is None:
        return _NUMBERS.pack(0, 0, 0, 0, 0, 0)
    strides = tensor.stride()
    chosen = [0 if axis is None else strides[axis] for axis in axes]
    return _NUMBERS.pack(tensor.data_ptr(), _DTYPES[tensor.dtype], *chosen)


def rows(tensor: Tensor) -> bytes:
    """A tensor [B, T, D] beside x."""
    return _ROWS.pack(*_place(tensor))


def kinds(tensor: Tensor, output: Tensor) -> tuple[int, int]:
    """The dtypes of what is summed and of the output, as the kernels number them."""
    return _DTYPES[tensor.dtype], _DTYPES[output.dtype]


def storage(x: Tensor, state: Tensor | None, dtype: torch.dtype) -> torch.dtype:
    """The dtype in which kernels read x, what came before it, and gradients; `dtype` is that of computation."""
    alike = compute_dtype(x) == dtype and (state is None or state.dtype == x.dtype)
    return x.dtype if alike else dtype


def stored(tensor: Tensor | None, dtype: torch.dtype) -> Any:
    """The tensor as kernels read it: in this dtype, its channels one after the other."""
    if tensor is None:
        return None
    tensor = tensor if tensor.dtype == dtype else tensor.to(dtype)
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] <= 1 else tensor.contiguous()


def computed(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The tensor in the dtype of computation, without gaps."""
    return None if tensor is None else tensor.to(dtype).contiguous()


def checked_ends(cu_seqlens: Tensor | None, length: int) -> Tensor | None:
    """Ends of packed sequences as kernels read them.

    Raises:
        ValueError: they do not fit the tokens.
    """
    return None if cu_seqlens is None else torch.tensor(sequence_ends(cu_seqlens, length))


def groups(tokens: int, width: int) -> int:
    """How many partial sums of gradients over tokens there are: it depends on sizes alone, and so do the bits."""
    return max(1, min(64, tokens // max(1, 20 * width)))


def _pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _place(tensor: Tensor | None) -> tuple[int, ...]:
    return _NONE if tensor is None else (tensor.data_ptr(), *tensor.stride()[:2])
