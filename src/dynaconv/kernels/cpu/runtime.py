"""Loads the kernels, and calls them with tensors.

What is the same in all calls with tensors of the same shapes, strides and dtypes is packed once, as the record `Plan`
of call.h; a call then packs where its tensors are, as the record `Places`.
"""

import ctypes
import functools
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..options import Options, compute_dtype
from ..sequences import sequence_ends
from .build import LIBRARIES, digest

_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_PLAN = struct.Struct("=12q7qd8q18q")
_PLACES = struct.Struct("=15Q")
_KERNELS = [f"{family}{suffix}" for family in ("static", "dynamic", "lowrank") for suffix in ("", "_gradient")]
# The dims of filters that are rows of the batch, tokens, heads and taps; of codes and a basis, the ranks take the place
# of heads and of rows.
_AXES = {
    "static": ((None, None, 0, 1),),
    "dynamic": ((0, 1, 2, 3), (None, None, 0, 1)),
    "lowrank": ((0, 1, 2, None), (0, None, 1, 2), (None, None, 0, 1)),
}
Filters = Sequence[Any]  # None for those that were not given


def levels() -> dict[str, Path]:
    """The libraries by their levels of instructions, as far as this processor has these, the highest last.

    Raises:
        OSError: there is none.
    """
    prefix = f"dynaconv-{digest()}-"
    found = {path.stem.removeprefix(prefix): path for path in sorted(LIBRARIES.glob(f"{prefix}*.so"))}
    if not found:
        raise OSError("they are not compiled; with a C++ compiler, python -m dynaconv.kernels.cpu does it")
    highest = ctypes.CDLL(str(next(iter(found.values())))).dynaconv_level()
    return {level: path for level, path in found.items() if not level.startswith("v") or int(level[1:]) <= highest}


@functools.cache
def library() -> ctypes.CDLL:
    """The kernels for the highest level of instructions that this processor has, or for that in $DYNACONV_CPU.

    Raises:
        OSError: there is none.
    """
    found = levels()
    level = os.environ.get("DYNACONV_CPU") or list(found)[-1]
    if level not in found:
        raise OSError(f"there are none for {level}, only for {', '.join(found)}")
    kernels = ctypes.CDLL(str(found[level]))
    for name in _KERNELS:
        getattr(kernels, f"dynaconv_{name}").argtypes = [ctypes.c_char_p, ctypes.c_char_p]
    torch_library = next(Path(torch.__file__).parent.joinpath("lib").glob("libtorch_cpu.*"))
    # Without the symbol, which torch has had since 2.10, the kernels run on one thread.
    if pool := getattr(ctypes.CDLL(str(torch_library)), "torch_parallel_for", None):
        kernels.dynaconv_threads(ctypes.cast(pool, ctypes.c_void_p))
    return kernels


class Convolution:
    """An operator for tensors like those given, which kernels can read as they are; to be called any number of times.

    Args:
        family: its name.
        x: [B, T, D].
        filters: those of the operator.
        past: [N, W-1, D], the inputs before each sequence.
        N: number of sequences.
        options: of the operator.
        dtype: of computation.
        grad: [B, T, D], the gradient of the output; the result is then that of the sum behind SiLU, in `dtype`.
        buffer: [M, S, D], is read in place of `past` and moves on behind the operator.
    """

    __slots__ = ("_dtype", "_kernel", "_plan", "_residual", "_shape")

    def __init__(
        self, family: str, x: Tensor, filters: Filters, past: Tensor | None, N: int, options: Options,
        dtype: torch.dtype, grad: Tensor | None = None, buffer: Tensor | None = None,
    ):  # fmt: skip
        self._shape, self._dtype, self._residual = x.shape, x.dtype if grad is None else dtype, options.residual
        self._kernel = getattr(library(), f"dynaconv_{family}")
        self._plan = plan(
            family, x, filters, N, options, x.dtype, x.dtype, residual=x if options.residual else None, grad=grad,
            past=past, buffer=buffer,
        )  # fmt: skip

    def __call__(
        self, x: Tensor, filters: Filters, bias: Tensor | None = None, past: Tensor | None = None,
        ends: Tensor | None = None, grad: Tensor | None = None, buffer: Tensor | None = None,
        indices: Tensor | None = None,
    ) -> Tensor | None:  # fmt: skip
        """The output; None where `indices`, [N] int64 rows of the buffer, are not all different or beyond it."""
        out = torch.empty(self._shape, dtype=self._dtype, device=x.device)
        at = places(
            x, filters, out, residual=x if self._residual else None, grad=grad, past=past, buffer=buffer,
            indices=indices, ends=ends, bias=bias,
        )  # fmt: skip
        return None if self._kernel(self._plan, at) else out


def prepared(x: Tensor, bias: Tensor | None, past: Tensor | None, dtype: torch.dtype) -> bool:
    """Whether kernels can read these tensors as they are, for a computation in `dtype`."""
    return (
        _stored(x, _storage(x, past, dtype)) is x
        and _stored(past, x.dtype) is past
        and (bias is None or _vector(bias, dtype) is bias)
    )


def convolve(
    family: str, x: Tensor, filters: Filters, bias: Tensor | None, past: Tensor | None, cu_seqlens: Tensor | None,
    options: Options, dtype: torch.dtype, grad: Tensor | None,
) -> Tensor:  # fmt: skip
    """The operator of a family; with `grad` the gradient of the sum behind SiLU instead, in `dtype`."""
    kind = _storage(x, past, dtype)
    stored, past, upstream, ends = _stored(x, kind), _stored(past, kind), _stored(grad, kind), ends_of(cu_seqlens, x)
    sequences = len(x) if ends is None else len(ends) - 1
    convolution = Convolution(family, stored, filters, past, sequences, options, dtype, upstream)
    out: Any = convolution(stored, filters, _vector(bias, dtype), past, ends, upstream)
    return out.to(x.dtype) if grad is None else out


class Gradients:
    """What the backward passes share: the tensors as kernels read them, and the gradients of x and of `past`.

    Args:
        family: name of the operator.
        filters: those of the operator.
        dz: [B, T, D], the gradient of the sum.
        grad: [B, T, D], that of the output.
        x: [B, T, D].
        past: [N, W-1, D].
        cu_seqlens: ends of packed sequences.
        options: of the operator.
        dtype: of computation.
    """

    def __init__(
        self, family: str, filters: Filters, dz: Tensor, grad: Tensor, x: Tensor, past: Tensor | None,
        cu_seqlens: Tensor | None, options: Options, dtype: torch.dtype,
    ):  # fmt: skip
        kind = _storage(x, past, dtype)
        self._family, self._filters, self._options, self._dtype = family, filters, options, dtype
        self._x, self._dz, self._past = (
            _stored(x, kind),
            _stored(dz, dtype if options.silu else kind),
            _stored(past, kind),
        )
        self._residual = _stored(grad, kind) if options.residual else None
        self._ends = ends_of(cu_seqlens, x)
        self._sequences = len(x) if self._ends is None else len(self._ends) - 1

    def of_inputs(self) -> tuple[Tensor, Tensor | None]:
        """Gradients of x, and of `past` where there is one, by the same kernel with filters the other way round."""
        dx = self._x.new_empty(self._x.shape)
        dpast = None if self._past is None else dx.new_zeros(self._past.shape, dtype=self._dtype)
        options = self._options._replace(silu=False, left=_width(self._family, self._filters) - 1 - self._options.left)
        layout = plan(
            self._family, self._dz, self._filters, self._sequences, options, self._dz.dtype, dx.dtype, backwards=True,
            residual=self._residual,
        )  # fmt: skip
        at = places(self._dz, self._filters, dx, residual=self._residual, ends=self._ends, out_past=dpast)
        getattr(library(), f"dynaconv_{self._family}")(layout, at)
        return dx, dpast

    def of_filters(self, out: Tensor | None, partial: Tensor | None = None) -> None:
        """Write the gradients of filters to `out`, or sums over tokens to `partial`, [groups, ..., channels]."""
        layout = plan(
            self._family, self._x, self._filters, self._sequences, self._options, self._dz.dtype, self._x.dtype,
            past=self._past, dz=self._dz, groups=1 if partial is None else len(partial),
            stride=0 if partial is None else partial.shape[-1],
        )  # fmt: skip
        at = places(self._x, self._filters, out, past=self._past, dz=self._dz, ends=self._ends, partial=partial)
        getattr(library(), f"dynaconv_{self._family}_gradient")(layout, at)


def groups(tokens: int, width: int) -> int:
    """How many partial sums of gradients over tokens there are: it depends on sizes alone, and so do the bits.

    They take a twentieth of the memory of x, or where x is small, work for four threads.
    """
    return max(1, min(4, tokens // 8), min(64, tokens // max(1, 20 * width)))


def total(partial: Tensor, options: Options) -> Tensor:
    """The sum of the partial sums [groups, ...], times the scale of the operator."""
    whole = partial[0] if len(partial) == 1 else partial.sum(0)
    return whole if options.scale == 1 else whole * options.scale


def plan(
    family: str, x: Tensor, filters: Filters, N: int, options: Options, summed: torch.dtype, output: torch.dtype, *,
    residual: Tensor | None = None, grad: Tensor | None = None, past: Tensor | None = None, dz: Tensor | None = None,
    buffer: Tensor | None = None, backwards: bool = False, groups: int = 1, stride: int = 0,
) -> bytes:  # fmt: skip
    """The record `Plan`, whose fields are explained in call.h."""
    strides = [n for t in (x, residual, grad, past, dz, buffer) for n in ((0, 0) if t is None else t.stride()[:2])]
    axes = [n for tensor, dims in zip(filters, _AXES[family], strict=True) for n in _numbers(tensor, dims)]
    size, bytes_each, rows = (0, 0, 0) if buffer is None else (buffer.shape[1], buffer.element_size(), len(buffer))
    return _PLAN.pack(
        *strides, *x.shape, _width(family, filters), N, options.left, options.silu, options.scale, size, bytes_each,
        rows, _DTYPES[summed], _DTYPES[output], backwards, groups, stride, *axes, *(0,) * (18 - len(axes)),
    )  # fmt: skip


def places(
    x: Tensor, filters: Filters, out: Tensor | None, *, residual: Tensor | None = None, grad: Tensor | None = None,
    past: Tensor | None = None, dz: Tensor | None = None, buffer: Tensor | None = None, indices: Tensor | None = None,
    ends: Tensor | None = None, bias: Tensor | None = None, out_past: Tensor | None = None,
    partial: Tensor | None = None,
) -> bytes:  # fmt: skip
    """The record `Places`; the tensors have to live until the kernel returns."""
    tensors = (x, residual, grad, past, dz, buffer, indices, ends, bias, out, out_past, partial, *filters)
    return _PLACES.pack(*[0 if t is None else t.data_ptr() for t in tensors], *(0,) * (3 - len(filters)))


def ends_of(cu_seqlens: Tensor | None, x: Tensor) -> Tensor | None:
    """Ends of packed sequences as kernels read them; ValueError where they do not fit the tokens of x."""
    return None if cu_seqlens is None else torch.tensor(sequence_ends(cu_seqlens, x.shape[1]), device="cpu")


def _numbers(tensor: Tensor | None, dims: Sequence[int | None]) -> tuple[int, ...]:
    """The fields of `Axes`."""
    if tensor is None:
        return (0, 0, 0, 0, 0, 1)
    strides = tensor.stride()
    heads = 1 if dims[2] is None else tensor.shape[dims[2]]
    return (_DTYPES[tensor.dtype], *(0 if axis is None else strides[axis] for axis in dims), heads)


def _width(family: str, filters: Filters) -> int:
    return filters[1 if family == "lowrank" else 0].shape[-1]


def _storage(x: Tensor, past: Tensor | None, dtype: torch.dtype) -> torch.dtype:
    """The dtype in which kernels read x, what came before it, and gradients; `dtype` is that of computation."""
    alike = compute_dtype(x) == dtype and (past is None or past.dtype == x.dtype)
    return x.dtype if alike else dtype


def _stored(tensor: Tensor | None, dtype: torch.dtype) -> Any:
    """The tensor as kernels read it: in this dtype, its channels one after the other."""
    if tensor is None:
        return None
    tensor = tensor if tensor.dtype == dtype else tensor.to(dtype)
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] <= 1 else tensor.contiguous()


def _vector(bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if bias is None else bias.to(dtype).contiguous()
