"""The functions of causal-conv1d (Dao-AILab/causal-conv1d 1.7), channels first, for every device, dtype and width.

    out[b, d, t] = activation(sum_w weight[d, w] * x[b, d, t + w - (W - 1)] + bias[d])

Tap order is ours, the last tap multiplies the current token. States are [N, D, S], oldest first.
What mamba_ssm imports is in :mod:`.cpp_functions`; vLLM's form of the functions in :mod:`dynaconv.interop.vllm`.
"""

import torch
from torch import Tensor

from ...checks import check_rows
from ...kernels.sequences import final_states, sequence_ends
from .._arguments import check, count_sequences, separate_sequences, short_conv

__all__ = ["causal_conv1d_fn", "causal_conv1d_update", "causal_conv1d_varlen_states", "export_state", "import_state"]


def import_state(states: Tensor) -> Tensor:
    """States of causal-conv1d, [N, D, S], as ours, [N, S, D]: a view, also of a buffer to be updated in place.

    S = W - 1 serves as `initial_state`, S >= W - 1 as `state`. A circular buffer (`cache_seqlens`) is in another order.

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: not of three dimensions.
    """
    check("states", states, "N D S")
    return states.transpose(1, 2)


export_state = import_state  # A transposition is its own inverse.


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Causal depthwise convolution of whole sequences.

    Gradients flow into x, weight, bias and initial_states, also through the final states.

    Args:
        x: [B, D, T], floating point, any strides.
        weight: [D, W].
        bias: [D].
        seq_idx: [B, T], int32 or int64: the sequence that each token belongs to, in runs of equal numbers. Nothing
            crosses from one run to the next. Tokens with a negative number are padding: their output is 0, and so is
            its gradient.
        initial_states: [B, D, W-1], the inputs before x; with `seq_idx`, before the first sequence of each row.
        return_final_states: also return the last W-1 inputs. Not with `seq_idx`.
        final_states_out: [B, D, W-1], overwritten with the final states and returned in their place.
        activation: None, "silu" or "swish" (the same).

    Returns:
        out, [B, D, T] in the dtype of x; with `return_final_states` the pair (out, final_states [B, D, W-1]).

    Raises:
        TypeError: an argument is not a tensor of the right kind, or on another device than x.
        ValueError: shapes that do not agree, an unknown activation, or options that exclude each other.
    """
    B, D, T = check("x", x, "B D T")
    W = check("weight", weight, "D W", x, D=D)[1]
    for name, states in {"initial_states": initial_states, "final_states_out": final_states_out}.items():
        if states is not None:
            check(name, states, "B D W-1", x, **{"B": B, "D": D, "W-1": W - 1})
    if final_states_out is not None and not return_final_states:
        raise ValueError("final_states_out needs return_final_states=True; got False")
    tokens, past = x.transpose(1, 2), None if initial_states is None else import_state(initial_states)
    if seq_idx is not None:
        check("seq_idx", seq_idx, "B T", x, integers=True, B=B, T=T)
        if return_final_states:
            raise ValueError("return_final_states must be False with seq_idx: a row has no single state; got True")
        return separate_sequences(tokens, weight, bias, activation, seq_idx, past).transpose(1, 2)
    out = short_conv(tokens, weight, bias, activation, initial_state=past).transpose(1, 2)
    if not return_final_states:
        return out
    final = export_state(final_states(tokens, past, W - 1, None))
    return out, final if final_states_out is None else final_states_out.copy_(final)


@torch.no_grad()
def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    """Causal depthwise convolution of the next token or tokens of streams, for inference: without gradients.

    Args:
        x: [B, D] or [B, D, T], floating point, any strides.
        conv_state: [M, D, S] with S >= W-1, the last S inputs, overwritten in place. M = B without indices.
        weight: [D, W].
        bias: [D].
        activation: None, "silu" or "swish" (the same).
        cache_seqlens: [B], int32 or int64, the number of tokens before x. Makes `conv_state` a circular buffer: token
            t of a stream is in slot t % S. None: the last slot holds the newest token.
        conv_state_indices: [B], int32 or int64: the row of `conv_state` that belongs to each row of x. A negative one
            marks a row of padding, whose output is 0 and which changes no state; the others are all different. None:
            row b belongs to row b.

    Returns:
        out, of the shape and dtype of x.

    Raises:
        TypeError: an argument is not a tensor of the right kind, or on another device than x.
        ValueError: shapes that do not agree, an unknown activation, or indices that are not different rows.
    """
    single = isinstance(x, Tensor) and x.dim() == 2
    tokens = x[..., None] if single else x
    B, D, T = check("x", tokens, "B D T")
    W = check("weight", weight, "D W", x, D=D)[1]
    M = B if conv_state_indices is None else None
    S = check("conv_state", conv_state, "M D S", x, M=M, D=D)[2]
    if S < W - 1:
        raise ValueError(f"conv_state must hold W - 1 = {W - 1} inputs or more; got {S}")
    for name, indices in {"cache_seqlens": cache_seqlens, "conv_state_indices": conv_state_indices}.items():
        if indices is not None:
            check(name, indices, "B", x, integers=True, B=B)
    if conv_state_indices is not None:
        check_rows("conv_state_indices", conv_state_indices, "conv_state", len(conv_state))
    tokens, state = tokens.transpose(1, 2), import_state(conv_state)
    if cache_seqlens is None:
        out = short_conv(tokens, weight, bias, activation, state=state, state_indices=conv_state_indices)
    else:
        row = torch.arange(B, device=x.device)
        rows = row if conv_state_indices is None else conv_state_indices.long()
        used = rows >= 0
        # From the slot of the next token on, a circular buffer is oldest first.
        slots = cache_seqlens.long()[:, None] + torch.arange(S, device=x.device)
        straight = state[rows.clamp(min=0)[:, None], slots % S]
        own = row.masked_fill(~used, -1)
        out = short_conv(tokens, weight, bias, activation, state=straight, state_indices=own)
        state[rows[used, None], (slots[used] + T) % S] = straight[used]
    return out[:, 0] if single else out.transpose(1, 2)


def causal_conv1d_varlen_states(x: Tensor, cu_seqlens: Tensor, state_len: int) -> Tensor:
    """The last inputs of every sequence of a packed batch, to continue from with :func:`causal_conv1d_update`.

    Args:
        x: [total tokens, D]; those behind the last sequence are padding.
        cu_seqlens: [N + 1], int32 or int64: 0, then the ends of the sequences.
        state_len: S, the number of inputs to keep.

    Returns:
        [N, D, S], zeros before the first input of a sequence.

    Raises:
        TypeError: an argument is not a tensor of the right kind, or on another device than x.
        ValueError: shapes that do not agree, ends that do not go from 0 to at most the total, or a negative state_len.
    """
    check("x", x, "T D")
    count_sequences(cu_seqlens, x)
    if state_len < 0:
        raise ValueError(f"state_len must be 0 or more; got {state_len}")
    if not torch.compiler.is_compiling():
        sequence_ends(cu_seqlens, len(x), padded=True)
    return export_state(final_states(x[None], None, state_len, cu_seqlens))
