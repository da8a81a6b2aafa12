"""The functions of `causal_conv1d.cpp_functions`, which mamba_ssm calls in autograd functions of its own.

As the peer's they record nothing for autograd. Layouts are those of :mod:`dynaconv.interop.causal_conv1d`.
"""

from typing import Any

import torch
from torch import Tensor

from .._arguments import check
from . import causal_conv1d_fn, causal_conv1d_update

__all__ = ["causal_conv1d_bwd_function", "causal_conv1d_fwd_function", "causal_conv1d_update_function"]


@torch.no_grad()
def causal_conv1d_fwd_function(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    final_states_out: Tensor | None,
    silu_activation: bool,
) -> Tensor:
    """Causal depthwise convolution of whole sequences; arguments as for :func:`causal_conv1d_fn`.

    Returns:
        out, [B, D, T] in the dtype of x. `final_states_out`, [B, D, W-1], is overwritten where given.

    Raises:
        TypeError: as :func:`causal_conv1d_fn`.
        ValueError: as :func:`causal_conv1d_fn`.
    """
    result = causal_conv1d_fn(
        x,
        weight,
        bias,
        seq_idx,
        initial_states,
        final_states_out is not None,
        final_states_out,
        _activation(silu_activation),
    )
    return result[0] if isinstance(result, tuple) else result


def causal_conv1d_bwd_function(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dout: Tensor,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    dfinal_states: Tensor | None,
    dx: Tensor | None,
    return_dinitial_states: bool,
    silu_activation: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients of :func:`causal_conv1d_fwd_function`.

    Args:
        x: as for :func:`causal_conv1d_fn`, like weight, bias, seq_idx and initial_states.
        weight: [D, W].
        bias: [D].
        dout: [B, D, T], the gradient of the output.
        seq_idx: [B, T].
        initial_states: [B, D, W-1].
        dfinal_states: [B, D, W-1], the gradient of the final states. Not with `seq_idx`.
        dx: [B, D, T], overwritten with the gradient of x and returned in its place; None: a new tensor.
        return_dinitial_states: also the gradient of the initial states, 0 where there are none.
        silu_activation: the activation is SiLU; otherwise there is none.

    Returns:
        Gradients of x, weight, bias and the initial states; None where there is no bias, or they are not wanted.

    Raises:
        TypeError: an argument is not a tensor of the right kind, or on another device than x.
        ValueError: shapes that do not agree.
    """
    B, D, T = check("x", x, "B D T")
    W = check("weight", weight, "D W", x, D=D)[1]
    check("dout", dout, "B D T", x, B=B, D=D, T=T)
    if dx is not None:
        check("dx", dx, "B D T", x, B=B, D=D, T=T)
    if dfinal_states is not None:
        check("dfinal_states", dfinal_states, "B D W-1", x, **{"B": B, "D": D, "W-1": W - 1})
    if initial_states is None and return_dinitial_states:
        initial_states = x.new_zeros(B, D, W - 1)
    leaves: list[Any] = [None if t is None else t.detach().requires_grad_() for t in (x, weight, bias, initial_states)]
    with torch.enable_grad():
        result = causal_conv1d_fn(
            leaves[0],
            leaves[1],
            leaves[2],
            seq_idx,
            leaves[3],
            dfinal_states is not None,
            None,
            _activation(silu_activation),
        )
        outputs = result if isinstance(result, tuple) else (result,)
        grads = (dout,) if dfinal_states is None else (dout, dfinal_states)
        seeds = [g.to(y.dtype) for g, y in zip(grads, outputs, strict=True)]
        given = [t for t in leaves if t is not None]
        found = iter(torch.autograd.grad(outputs, given, seeds, materialize_grads=True))
    results: list[Any] = [None if t is None else next(found) for t in leaves]
    if dx is not None:
        results[0] = dx.copy_(results[0])
    return *results[:3], results[3] if return_dinitial_states else None


def causal_conv1d_update_function(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu_activation: bool,
    cache_seqlens: Tensor | None,
    conv_state_indices: Tensor | None,
) -> Tensor:
    """:func:`causal_conv1d_update` with a flag for the activation."""
    return causal_conv1d_update(
        x, conv_state, weight, bias, _activation(silu_activation), cache_seqlens, conv_state_indices
    )


def _activation(silu: bool) -> str | None:
    return "silu" if silu else None
