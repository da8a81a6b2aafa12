"""How the Numba kernels see tensors and threads.

Numba's OpenMP layer shares PyTorch's thread pool (both bind to the OpenMP runtime that torch loaded), so that a kernel
does not compete with the spinning threads of the operator before it. Measured on two cores, softmax followed by a
convolution: 4.9 ms on the shared pool, 8.6 ms on a pool of its own.
"""

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from numba.core.caching import NullCache
from torch import Tensor

from ..availability import tell
from ..sequences import sequence_ends

config: Any = numba.config
if config.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT is set")
if "NUMBA_THREADING_LAYER" not in os.environ and "NUMBA_THREADING_LAYER_PRIORITY" not in os.environ:
    config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]

# Reassociation lets LLVM vectorise dot products; NaN and infinity keep their meaning.
_njit: Any = numba.njit
_options: Any = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"}}
_parallel = dict.fromkeys(("comprehension", "reduction", "inplace_binop", "setitem", "numpy", "stencil"), False) | {
    "prange": True
}
inline = _njit(inline="always", **_options)
function = _njit(**_options)
_sources = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))).digest()


def kernel(entry: Callable) -> Callable:
    """Compile a function for all threads, and keep it on disk."""
    compiled: Any = _njit(parallel=_parallel, **_options)(entry)
    try:
        compiled.enable_caching()
    except RuntimeError as error:  # no folder for it
        _tell_of_cache(error)
    # Numba compiles again when the file of a kernel changes, but not when that of a function inlined into it does.
    with contextlib.suppress(AttributeError):
        compiled._cache._cache_file._source_stamp = _sources
    return compiled


def _tell_of_cache(error: Exception) -> None:
    tell("Numba kernels are compiled anew by every process, NUMBA_CACHE_DIR names another folder for them", error)


_lock = threading.Lock()


def launch(function: Any, *arguments: object) -> None:
    """Run a kernel on `torch.get_num_threads()` threads."""
    # One kernel uses every thread, so callers wait for each other; Numba's workqueue layer would abort on concurrency.
    with _lock:
        threads = torch.get_num_threads()
        numba.set_num_threads(min(threads, config.NUMBA_NUM_THREADS))
        try:
            function(*arguments)
        except Exception as error:
            if isinstance(function._cache, NullCache):
                raise
            # Reading or writing the file may have failed, which nothing has run before.
            _tell_of_cache(error)
            function._cache = NullCache()
            function(*arguments)
        # Numba sets the thread count of the shared pool when it starts.
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


def tasks(batch: int, length: int, cu_seqlens: Tensor | None) -> np.ndarray:
    """Blocks of consecutive tokens, [K, 6]: sequence, batch row, its first token there, its length, block's ends in it.

    A block keeps its window in the L1 cache, and there are a few for every thread. The table depends on the sizes
    alone: with another number of threads the sums, and so the bits, stay the same.
    """
    if cu_seqlens is None:
        row, start, lengths = np.arange(batch), np.zeros(batch, np.int64), np.full(batch, length)
    else:
        offsets = np.array(sequence_ends(cu_seqlens, length))
        row, start, lengths = np.zeros(len(offsets) - 1, np.int64), offsets[:-1], np.diff(offsets)
    block = max(8, min(64, batch * length // 32))
    counts = -(-lengths // block)
    sequence = np.repeat(np.arange(len(counts)), counts)
    first = (np.arange(len(sequence)) - np.repeat(np.cumsum(counts) - counts, counts)) * block
    last = np.minimum(first + block, lengths[sequence])
    return np.stack([sequence, row[sequence], start[sequence], lengths[sequence], first, last], axis=1)


def groups(table: np.ndarray, limit: int) -> np.ndarray:
    """Where to cut a table of tasks into at most `limit` groups, each of which keeps a partial sum of its own."""
    count = max(1, min(64, limit, len(table)))
    return np.linspace(0, len(table), count + 1).astype(np.int64)


def rows(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in `dtype` with a contiguous last dimension; the other strides are kept, so a slice is not copied."""
    tensor = tensor.detach().to(dtype)
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] <= 1 else tensor.contiguous()


def flat(tensor: Tensor) -> np.ndarray:
    """The memory of a tensor from its first to its last element, as one array that its strides index."""
    extent = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) if tensor.numel() else 0
    return np.asarray(_Memory(tensor.detach(), extent)) if extent else np.empty(0, _KINDS[tensor.dtype])


_KINDS = {torch.float32: "<f4", torch.float64: "<f8"}


class _Memory:
    """Elements of a tensor, which lives as long as an array of them.

    Not `Tensor.numpy()`, which fixes the size of the storage for good: FSDP frees and allocates those of parameters.
    """

    def __init__(self, tensor: Tensor, extent: int):
        self.tensor = tensor
        data = (tensor.data_ptr(), False)
        self.__array_interface__ = {"data": data, "shape": (extent,), "typestr": _KINDS[tensor.dtype], "version": 3}


def optional(tensor: Tensor | None, like: Tensor) -> np.ndarray:
    """The elements of a tensor in order, or an empty array, in the dtype of `like`."""
    return flat(like.new_empty(0) if tensor is None else tensor.detach().to(like.dtype).contiguous())
