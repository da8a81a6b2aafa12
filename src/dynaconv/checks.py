"""What the operators refuse: each check names the argument, what came, and what was expected."""

import torch
from torch import Tensor

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_dense(name: str, tensor: object) -> None:
    """Raise TypeError where an argument is a nested or a sparse tensor, which have no strides."""
    if isinstance(tensor, Tensor) and (tensor.is_nested or tensor.layout != torch.strided):
        kind = "a nested tensor, use cu_seqlens for sequences of several lengths" if tensor.is_nested else tensor.layout
        raise TypeError(f"{name} must be a dense tensor; got {kind}")


def check_tensor(name: str, tensor: Tensor, dims: int, like: Tensor | None = None) -> None:
    """Raise TypeError or ValueError unless it is a floating-point tensor of so many dimensions, where `like` is."""
    check_dense(name, tensor)
    if not isinstance(tensor, Tensor) or tensor.dtype not in _DTYPES:
        kind = f"a tensor of {tensor.dtype}" if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"{name} must be a floating-point tensor (fp16, bf16, fp32 or fp64); got {kind}")
    if tensor.dim() != dims:
        raise ValueError(f"{name} must have {dims} dimensions; got shape {shape(tensor)}")
    if like is not None and tensor.device != like.device:
        raise TypeError(f"{name} must be on the device of x, {like.device}; got {tensor.device}")


def check_filters(name: str, filters: Tensor, dims: int, x: Tensor, width: int | None = None) -> None:
    """Raise TypeError or ValueError unless they are filters [..., H, W] for the channels of x, with `width` taps."""
    check_tensor(name, filters, dims, x)
    heads, taps = filters.shape[-2:]
    if taps == 0:
        raise ValueError(f"{name} must have at least one tap (W >= 1); got W = 0")
    if width not in (None, taps):
        raise ValueError(f"{name} must have as many taps as the other filters, W = {width}; got W = {taps}")
    if heads == 0 or x.shape[2] % heads:
        raise ValueError(
            f"{name} must be for a number of heads that divides D; got H = {heads}, D = {x.shape[2]} of x [B, T, D]"
        )


def check_tokens(name: str, layout: str, tensor: Tensor, x: Tensor) -> None:
    """Raise ValueError unless a tensor has the B and T of x."""
    if tensor.shape[:2] != x.shape[:2]:
        raise ValueError(f"{name} must be {layout} with the B, T of x, {shape(x)}; got {shape(tensor)}")


def check_cu_seqlens(cu_seqlens: Tensor, x: Tensor) -> None:
    """Raise TypeError or ValueError unless they are ends of sequences in x [1, T, D], whatever their values."""
    check_dense("cu_seqlens", cu_seqlens)
    if not isinstance(cu_seqlens, Tensor) or cu_seqlens.dtype not in (torch.int32, torch.int64):
        kind = cu_seqlens.dtype if isinstance(cu_seqlens, Tensor) else type(cu_seqlens).__name__
        raise TypeError(f"cu_seqlens must be a tensor of int32 or int64; got {kind}")
    if cu_seqlens.dim() != 1 or len(cu_seqlens) == 0:
        raise ValueError(f"cu_seqlens must be [N + 1]; got {shape(cu_seqlens)}")
    if x.shape[0] != 1:
        raise ValueError(f"cu_seqlens packs sequences into one row: x must be [1, T, D]; got {shape(x)}")
    if cu_seqlens.device != x.device:
        raise TypeError(f"cu_seqlens must be on the device of x, {x.device}; got {cu_seqlens.device}")


def shape(tensor: Tensor) -> list[int]:
    """The sizes of a tensor, as errors show them."""
    return list(tensor.shape)


def check_state_indices(indices: Tensor, state: Tensor, sequences: int | None) -> None:
    """Raise TypeError or ValueError unless they are rows of a state, one for each of so many sequences."""
    check_dense("state_indices", indices)
    if not isinstance(indices, Tensor) or indices.dtype not in (torch.int32, torch.int64):
        kind = indices.dtype if isinstance(indices, Tensor) else type(indices).__name__
        raise TypeError(f"state_indices must be a tensor of int32 or int64; got {kind}")
    if indices.dim() != 1 or sequences not in (None, len(indices)):
        raise ValueError(
            f"state_indices must be [N{'' if sequences is None else f' = {sequences}'}]; got {shape(indices)}"
        )
    if indices.device != state.device:
        raise TypeError(f"state_indices must be on the device of state, {state.device}; got {indices.device}")
    check_rows("state_indices", indices, "state", len(state))


def check_rows(name: str, indices: Tensor, buffer: str, rows: int) -> None:
    """Raise ValueError unless they are different rows of a buffer, or negative."""
    # On a GPU the values would have to be waited for: there PyTorch's own check of an index stops the process.
    if indices.device.type == "cpu" and not torch.compiler.is_compiling():
        used = indices[indices >= 0]
        if bool((used >= rows).any()) or len(used.unique()) != len(used):
            raise ValueError(f"{name} must be different rows of {buffer}, 0..{rows - 1}, or -1; got {indices.tolist()}")
