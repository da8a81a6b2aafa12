"""The function `causal_conv1d` of flash-linear-attention 0.6 (`fla.modules.conv`), for every device and dtype.

    y[b, t, d] = activation(sum_w weight[d, w] * x[b, t + w - (W - 1), d] + bias[d]) + residual[b, t, d]

Tap order is ours. States are [N, D, W], oldest first: W inputs, one more than the convolution reads. The weight of a
ShortConvolution module is that of an `nn.Conv1d`: see :mod:`dynaconv.interop.conv1d`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels.sequences import final_states
from ._arguments import check, count_sequences, short_conv

__all__ = ["causal_conv1d", "export_state", "import_state"]


def import_state(states: Tensor) -> Tensor:
    """States of fla, [N, D, W], as ours, [N, W-1, D]: a view without the oldest input.

    A cache that is to be updated in place needs no conversion but `state=cache.transpose(1, 2)`.

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: not of three dimensions, or W = 0.
    """
    if check("states", states, "N D W")[2] == 0:
        raise ValueError("states must be [N, D, W] with W >= 1; got W = 0")
    return states[..., 1:].transpose(1, 2)


def export_state(state: Tensor) -> Tensor:
    """Our states, [N, W-1, D], as those of fla, [N, D, W], with 0 for the oldest input, which is never read.

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: not of three dimensions.
    """
    check("state", state, "N W-1 D")
    return F.pad(state.transpose(1, 2), (1, 0))


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None,
    initial_state: Tensor | None = None, output_final_state: bool = False, activation: str | None = None,
    backend: str | None = None, cu_seqlens: Tensor | None = None,  # noqa: ARG001
    cu_seqlens_cpu: Tensor | None = None, chunk_indices: Tensor | None = None, cp_context: None = None,  # noqa: ARG001
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Causal depthwise convolution.

    Gradients flow into x, weight, bias, residual and initial_state, also through the final state.

    Args:
        x: [B, T, D], floating point, any strides.
        weight: [D, W].
        bias: [D].
        residual: [B, T, D], added after the activation.
        initial_state: [N, D, W], the inputs before each sequence.
        output_final_state: also return the last W inputs of each sequence.
        activation: None, "silu" or "swish" (the same).
        backend: ignored: fla's choice of a kernel. Ours is :func:`dynaconv.backend`.
        cu_seqlens: [N + 1], int32 or int64: the sequences of a packed row (B = 1).
        cu_seqlens_cpu: ignored: a copy of `cu_seqlens`.
        chunk_indices: ignored: derived from `cu_seqlens`.
        cp_context: None; context parallelism is not available.

    Returns:
        The pair (y, final_state): y [B, T, D] in the dtype of x; final_state [N, D, W], None unless asked for.

    Raises:
        TypeError: an argument is not a tensor of the right kind, or on another device than x.
        ValueError: shapes that do not agree, an unknown activation, or a `cp_context`.
    """
    if cp_context is not None:
        raise ValueError(f"cp_context must be None: context parallelism is not available; got {cp_context!r}")
    B, T, D = check("x", x, "B T D")
    W = check("weight", weight, "D W", x, D=D)[1]
    N = B if cu_seqlens is None else count_sequences(cu_seqlens, x)
    past = None
    if initial_state is not None:
        check("initial_state", initial_state, "N D W", x, N=N, D=D, W=W)
        past = import_state(initial_state)
    if residual is not None:
        check("residual", residual, "B T D", x, B=B, T=T, D=D)
    y = short_conv(x, weight, bias, activation, cu_seqlens=cu_seqlens, initial_state=past)
    if residual is not None:
        y = (y + residual).to(x.dtype)
    if not output_final_state:
        return y, None
    before = None if initial_state is None else initial_state.transpose(1, 2)
    final = final_states(x, before, W, cu_seqlens).transpose(1, 2)
    # Never a view of x: it is a cache that decoding overwrites.
    return y, final.clone(memory_format=torch.contiguous_format)
