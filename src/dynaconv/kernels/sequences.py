"""Where sequences end in a packed batch, and the states that they leave behind."""

import itertools

import torch
from torch import Tensor


def sequence_ends(cu_seqlens: Tensor, length: int, *, padded: bool = False) -> list[int]:
    """`cu_seqlens` as numbers; where `padded`, tokens may follow the last sequence.

    Raises:
        ValueError: they do not start at 0, decrease, or do not end at `length`.
    """
    ends = cu_seqlens.tolist()
    end = min(ends[-1], length) if padded else length
    if ends[0] != 0 or ends[-1] != end or any(a > b for a, b in itertools.pairwise(ends)):
        last = "at most at" if padded else "at"
        raise ValueError(f"cu_seqlens must start at 0, not decrease, and end {last} T = {length}; got {ends}")
    return ends


def final_states(x: Tensor, past: Tensor | None, size: int, cu_seqlens: Tensor | None) -> Tensor:
    """The last `size` inputs of every sequence, [N, size, D], in the dtype of x; zeros before the first.

    Args:
        x: [B, T, D].
        past: [N, size, D], the inputs before; None: zeros.
        size: number of inputs.
        cu_seqlens: [N + 1]; None: a sequence in every row.
    """
    if cu_seqlens is None:
        return _last(x, past, size)
    N = len(cu_seqlens) - 1
    before = x.new_zeros(N, size, x.shape[2]) if past is None else past.to(x.dtype)
    if x.shape[1] == 0 or size == 0:
        return before.clone()
    first, last = cu_seqlens[:-1, None].long(), cu_seqlens[1:, None].long()
    positions = last - size + torch.arange(size, device=x.device)
    slots = (positions - first + size).clamp(0, size - 1)
    inside = x[0, positions.clamp(0, x.shape[1] - 1)]
    earlier = before.gather(1, slots[..., None].expand_as(before))
    return torch.where((positions >= first)[..., None], inside, earlier)


def next_states(state: Tensor, x: Tensor, cu_seqlens: Tensor | None, indices: Tensor | None) -> None:
    """Overwrite the rows of a buffer [M, S, D] with the last S inputs of their sequences."""
    with torch.no_grad():
        if indices is None:
            state.copy_(final_states(x, state, state.shape[1], cu_seqlens))
        elif len(state) and len(indices):
            past = state.index_select(0, indices.clamp(min=0))
            write_rows(state, indices.long(), final_states(x, past, state.shape[1], cu_seqlens))


def write_rows(state: Tensor, indices: Tensor, values: Tensor) -> None:
    """state[indices[n]] = values[n] where indices[n] >= 0, of one index at least, without waiting for a GPU."""
    # The others write what the first that is used writes, or if there is none, row 0 as it is.
    first = (indices >= 0).int().argmax(keepdim=True)
    row = indices[first].clamp(min=0)
    used, values = (indices >= 0)[:, None, None], values.to(state.dtype)
    default = torch.where(used[first], values[first], state[row])
    state.index_copy_(0, torch.where(indices >= 0, indices, row), torch.where(used, values, default))


def _last(x: Tensor, past: Tensor | None, size: int) -> Tensor:
    length = x.shape[1]
    if length >= size:
        return x[:, length - size :].clone()
    before = x.new_zeros(len(x), size - length, x.shape[2]) if past is None else past[:, length:].to(x.dtype)
    return torch.cat([before, x], dim=1)
