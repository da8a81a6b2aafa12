"""How the Triton kernels are launched: which tokens a program takes, block sizes, devices.

A program takes a chunk of consecutive tokens of one sequence and a block of channels. Chunks are the only parallelism
over tokens, all on the first axis of the grid, which holds 2^31 - 1 programs.
"""

import os
from typing import Any, NamedTuple

import numpy as np
import torch
import triton
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ..sequences import sequence_ends

INTERPRETED = bool(triton.knobs.runtime.interpret)
AUTOTUNE = os.environ.get("DYNACONV_AUTOTUNE") == "1"

_tables: Any = WeakTensorKeyDictionary()
_jit: Any = triton.jit


class Chunks(NamedTuple):
    """The chunks of a batch: arguments of every kernel.

    Attributes:
        table: [K, 4] int64: sequence, its first and last (exclusive) token, first token of the chunk; None: the same
            number of chunks in every row of the batch.
        length: T.
        count: K.
    """

    table: Tensor | None
    length: int
    count: int


def chunks(x: Tensor, cu_seqlens: Tensor | None, size: int) -> Chunks:
    """Chunks of at most `size` tokens of x [B, T, D], none across a boundary of a packed batch."""
    B, T = x.shape[:2]
    if cu_seqlens is None:
        return Chunks(None, T, B * ceil_div(T, size))
    if cu_seqlens.is_inference():  # its changes are not counted
        table = _table(cu_seqlens, T, size)
    else:
        version, known = _tables.get(cu_seqlens, (None, {}))
        if version != cu_seqlens._version:
            known = {}
            _tables[cu_seqlens] = cu_seqlens._version, known
        if (size, T) not in known:
            known[size, T] = _table(cu_seqlens, T, size)
        table = known[size, T]
    return Chunks(table, T, len(table))


def _table(cu_seqlens: Tensor, length: int, size: int) -> Tensor:
    ends = np.array(sequence_ends(cu_seqlens, length))
    counts = ceil_div(np.diff(ends), size)
    sequence = np.repeat(np.arange(len(counts)), counts)
    index = np.arange(len(sequence)) - np.repeat(np.cumsum(counts) - counts, counts)
    rows = np.stack([sequence, ends[sequence], ends[sequence + 1], ends[sequence] + index * size], axis=1)
    return torch.from_numpy(rows.astype(np.int64)).to(cu_seqlens.device)


def launch(kernel: Any, programs: int, x: Tensor, *arguments: object, **constants: object) -> None:
    """Run a kernel on the device of x."""
    if programs >= 2**31:
        raise ValueError(f"x is too large: {list(x.shape)} needs {programs} programs, a grid has at most 2^31 - 1")
    if programs:
        with torch.cuda.device_of(x):
            kernel[(programs,)](*arguments, **constants)


def kernel(function: Any) -> Any:
    """`triton.jit` whose integers do not compile anew for every length.

    With DYNACONV_AUTOTUNE=1 the numbers of warps and stages are measured, once for a kernel, dtypes and constants,
    never for a number of tokens, and kept on disk.
    """
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    constants = [name for name in names if name.isupper()]
    compiled: Any = _jit(function, do_not_specialize=["length", "left", "count", "each"])
    if not AUTOTUNE or INTERPRETED:
        return compiled
    configs = [triton.Config({}, num_warps=w, num_stages=s) for w in (2, 4, 8) for s in (1, 2, 3)]
    return triton.autotune(configs, key=constants, cache_results=True)(compiled)


def launch_options(elements: int, stages: int = 1) -> dict[str, int]:
    """Launch options for a tile of so many elements: 16 in every thread, in up to 8 warps."""
    if AUTOTUNE and not INTERPRETED:
        return {}
    return {"num_warps": max(1, min(8, elements // 512)), "num_stages": stages}


def contiguous(tensor: Tensor | None) -> Tensor | None:
    """The tensor, if there is one, without gaps."""
    return None if tensor is None else tensor.contiguous()


def ceil_div(number: Any, divisor: int) -> Any:
    """The quotient, rounded up."""
    return -(-number // divisor)


def power_of_two(number: int, low: int = 1, high: int = 1 << 30) -> int:
    """The next power of two, within bounds."""
    return max(low, min(high, 1 << max(0, number - 1).bit_length()))
