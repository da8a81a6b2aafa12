"""The functions of vLLM's `mamba.ops.causal_conv1d`, for every device, dtype and width: streams in the rows of a cache.

    out[d, t] = activation(sum_w weight[d, w] * x[d, t + w - (W - 1)] + bias[d])

Tap order is ours. Caches are [M, D, S] with S >= W-1, of which the first W-1 slots are the last inputs, oldest first.
"""

import torch
from torch import Tensor

from ..checks import check_rows
from ._arguments import check, count_sequences, short_conv

__all__ = ["causal_conv1d_fn", "causal_conv1d_update"]


@torch.no_grad()
def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    conv_states: Tensor,
    query_start_loc: Tensor,
    cache_indices: Tensor | None = None,
    has_initial_state: Tensor | None = None,
    activation: str | bool | None = "silu",
    pad_slot_id: int = -1,
) -> Tensor:
    """Causal depthwise convolution of chunks of streams, packed behind one another, for inference: without gradients.

    Args:
        x: [D, total tokens]; the output of tokens behind the last sequence is 0.
        weight: [D, W].
        bias: [D] or None.
        conv_states: [M, D, S], overwritten in place in the rows of the sequences that have tokens.
        query_start_loc: [N + 1], int32 or int64: 0, then the ends of the sequences.
        cache_indices: [N], int32 or int64: the rows of `conv_states`, all different. None: row n for sequence n.
        has_initial_state: [N] booleans: the sequence continues what is in its row. None: none does.
        activation: None, "silu" or "swish" (the same); True is "silu", False None.
        pad_slot_id: what `cache_indices` has for a sequence of padding, whose output is 0 and which changes no state.

    Returns:
        [D, total tokens] in the dtype of x.

    Raises:
        TypeError: an argument is not a tensor of the right kind, or on another device than x.
        ValueError: shapes that do not agree, an unknown activation, ends that do not fit, or rows that do not.
    """
    D, total = check("x", x, "D T")
    N = count_sequences(query_start_loc, x, "query_start_loc")
    if has_initial_state is not None:
        if not isinstance(has_initial_state, Tensor) or has_initial_state.dtype != torch.bool:
            kind = getattr(has_initial_state, "dtype", type(has_initial_state).__name__)
            raise TypeError(f"has_initial_state must be a tensor of booleans; got {kind}")
        if has_initial_state.shape != (N,):
            raise ValueError(f"has_initial_state must be [N = {N}]; got {list(has_initial_state.shape)}")
    end = int(query_start_loc[-1])
    if not 0 <= end <= total:
        raise ValueError(f"query_start_loc must end at most at {total}, the tokens of x; got {end}")
    continued = torch.zeros(N, dtype=torch.bool, device=x.device) if has_initial_state is None else has_initial_state
    y = _packed(
        x[:, :end].T,
        weight,
        bias,
        conv_states,
        query_start_loc,
        cache_indices,
        continued,
        activation,
        pad_slot_id,
        "conv_states",
        "cache_indices",
    )
    out = x.new_zeros(D, total)
    out[:, :end] = y.T
    return out


@torch.no_grad()
def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | bool | None = None,
    conv_state_indices: Tensor | None = None,
    query_start_loc: Tensor | None = None,
    pad_slot_id: int = -1,
) -> Tensor:
    """Causal depthwise convolution of the next token or tokens of streams, for inference: without gradients.

    Args:
        x: [N, D] or [N, D, T]; with `query_start_loc` [total tokens, D]. Not overwritten, as vLLM's kernel does.
        conv_state: [M, D, S], overwritten in place in the rows of the streams.
        weight: [D, W].
        bias: [D].
        activation: None, "silu" or "swish" (the same); True is "silu", False None.
        conv_state_indices: [N], int32 or int64: the rows of `conv_state`, all different. None: row n for stream n.
        query_start_loc: [N + 1], int32 or int64: 0, then the ends of the tokens of each stream, the last one the total.
        pad_slot_id: what `conv_state_indices` has for a row of padding, whose output is 0 and which changes no state.

    Returns:
        out, of the shape and dtype of x.

    Raises:
        TypeError: an argument is not a tensor of the right kind, or on another device than x.
        ValueError: shapes that do not agree, an unknown activation, ends that do not fit, or rows that do not.
    """
    if query_start_loc is None:
        single = isinstance(x, Tensor) and x.dim() == 2
        N, D, T = check("x", x[..., None] if single else x, "N D T")
        tokens = (x[..., None] if single else x).transpose(1, 2).reshape(N * T, D)
        ends = torch.arange(N + 1, device=x.device) * T
    else:
        check("x", x, "T D")
        N, tokens, ends = count_sequences(query_start_loc, x, "query_start_loc"), x, query_start_loc
    continued = torch.ones(N, dtype=torch.bool, device=x.device)
    y = _packed(
        tokens,
        weight,
        bias,
        conv_state,
        ends,
        conv_state_indices,
        continued,
        activation,
        pad_slot_id,
        "conv_state",
        "conv_state_indices",
    )
    return y if x.dim() == 2 else y.view(N, x.shape[2], x.shape[1]).transpose(1, 2)


def _packed(
    tokens: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cache: Tensor,
    ends: Tensor,
    indices: Tensor | None,
    continued: Tensor,
    activation: str | bool | None,
    pad_slot_id: int,
    cache_name: str,
    indices_name: str,
) -> Tensor:
    """The convolution of tokens [T, D] of N streams, each of which begins with its row of the cache if `continued`."""
    N, D = len(continued), tokens.shape[1]
    W = check("weight", weight, "D W", tokens, D=D)[1]
    M, _, S = check(cache_name, cache, "M D S", tokens, D=D)
    if max(1, W) - 1 > S:
        raise ValueError(f"{cache_name} must hold W - 1 = {W - 1} inputs or more; got {S}")
    own = torch.arange(N, device=tokens.device)
    rows = own
    if indices is not None:
        check(indices_name, indices, "N", tokens, integers=True, N=N)
        rows = torch.where(indices == pad_slot_id, -1, indices.long())
    check_rows(indices_name, rows, cache_name, M)
    used = (rows >= 0) & (ends.diff() > 0)
    state = cache[..., : W - 1].transpose(1, 2)
    # A copy, so that a call that fails changes nothing.
    past = state[rows.clamp(min=0)] if M else state.new_zeros(N, W - 1, D)
    past = past.masked_fill(~continued[:, None, None], 0)
    if isinstance(activation, bool):
        activation = "silu" if activation else None
    y = short_conv(
        tokens[None], weight, bias, activation, cu_seqlens=ends, state=past, state_indices=own.masked_fill(~used, -1)
    )
    state[rows[used]] = past[used]
    return y[0]
