"""The token mixer of Gated DeltaNet, with static, dynamic or no short convolution.

Source: *Gated Delta Networks: Improving Mamba2 with Delta Rule* (Yang et al., 2024).

Dims: B batch, T tokens, C channels, G key heads, H value heads (R = H // G consecutive ones share a key head), K and V
channels of a key and of a value head, Q tokens of a chunk, M chunks, S packed sequences.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.options import compute_dtype
from .recurrence import (
    ConvKind,
    RecurrentMixer,
    call_fla,
    check_multiple,
    check_sequences,
    chunk_decays,
    chunk_sizes,
    chunked,
    fla_kernel,
    without_autocast,
)
from .stream import Stream


def delta_rule_flops(
    batch: int,
    tokens: int,
    num_key_heads: int,
    num_value_heads: int,
    key_head_dim: int,
    value_head_dim: int,
    chunk_size: int = 64,
) -> int:
    """FLOPs of the matrix products in a forward call of :func:`gated_delta_rule`, see there."""
    chunks, size = chunk_sizes(tokens, chunk_size)
    inside = size * (2 * num_key_heads * key_head_dim + num_value_heads * value_head_dim)
    return 2 * batch * chunks * size * (inside + 3 * num_value_heads * key_head_dim * value_head_dim)


@without_autocast
def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    *,
    chunk_size: int = 64,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The gated delta rule, in chunks.

        S_t = exp(log_decay_t) S_{t-1} + beta_t k_t (v_t - exp(log_decay_t) S_{t-1}^T k_t)^T
        o_t = S_t^T q_t / sqrt(K)

    for every value head, with the q and k of its key head, each scaled to length 1: x / sqrt(sum x^2 + 1e-6) (Yang et
    al. 2024, section 3). In a chunk, the updates of S solve a unit lower triangular system. Computed in fp32, or in
    fp64 where v is fp64. Where fla is installed, tensors in fp16 or bf16 on CUDA take its kernel
    `chunk_gated_delta_rule`, which has a chunk size of its own.

    The matrix products have 2 B M Q (Q (2 G K + H V) + 3 H K V) FLOPs, with chunks of Q = min(chunk_size, T) tokens and
    M = ceil(T / Q), both at least 1; that is what :func:`delta_rule_flops` returns and PyTorch's FlopCounterMode
    counts. It does not count the triangular solves, B M Q^2 H (K + V).

    Args:
        q: [B, T, G, K].
        k: [B, T, G, K].
        v: [B, T, H, V].
        log_decay: [B, T, H], <= 0.
        beta: [B, T, H], from 0, which leaves S as it decays, to 1, which replaces what k finds in it.
        chunk_size: Q, tokens that are computed at once.
        initial_state: [B, H, K, V], S before the first token; None: zeros.
        cu_seqlens: [S + 1], the ends of packed sequences in the B rows of T tokens laid end to end; every row begins a
            sequence. None: every row is one sequence.

    Returns:
        o, [B, T, H, V] in the dtype of v, and S after the last token, [B, H, K, V]; with `cu_seqlens` None.

    Raises:
        ValueError: H is not a multiple of G, `chunk_size` is not at least 1, or both `initial_state` and `cu_seqlens`
            are given.
    """
    (B, T, H, V), (G, K) = v.shape, k.shape[2:]
    check_multiple("heads of v", H, "heads of k", G)
    check_sequences(initial_state, cu_seqlens)
    chunks, size = chunk_sizes(T, chunk_size)
    if kernel := fla_kernel("gated_delta_rule", "chunk_gated_delta_rule", v):
        q, k = (tensor.to(v.dtype).repeat_interleave(H // G, dim=2) for tensor in (q, k))
        tensors = {"q": q, "k": k, "v": v, "g": log_decay.float(), "beta": beta.to(v.dtype)}
        return call_fla(kernel, tensors, initial_state, cu_seqlens, use_qk_l2norm_in_kernel=True)

    dtype = compute_dtype(v)
    q, k = (chunked(_unit(tensor.to(dtype)), chunks, size)[:, :, :, None] for tensor in (q, k))  # [B, M, G, 1, Q, K]
    q = q * K**-0.5
    values = chunked(v.to(dtype), chunks, size).unflatten(2, (G, -1))  # [B, M, G, R, Q, V]
    decays = chunk_decays(log_decay.to(dtype), cu_seqlens, chunks, size)
    beta = chunked(beta.to(dtype), chunks, size)
    within, start, end, beta = (tensor.unflatten(2, (G, -1)) for tensor in (*decays, beta))

    # What the tokens of a chunk add to S is k u^T: u = written - read @ S, with S at the end of the chunk before.
    system = beta[..., None] * within * (k @ k.mT)
    sides = torch.cat([values * beta[..., None], k * (beta * start)[..., None]], dim=-1)
    solved = torch.linalg.solve_triangular(system, sides, upper=False, unitriangular=True)
    written, read = solved.split([V, K], dim=-1)

    state = v.new_zeros(B, H, K, V, dtype=dtype) if initial_state is None else initial_state.to(dtype)
    states, added = [state.unflatten(1, (G, -1))], []
    parts = (written, read, (k * end[..., None]).mT, start[..., -1, None, None])
    for new, old, keys, decay in zip(*(part.unbind(1) for part in parts), strict=True):
        added.append(new - old @ states[-1])
        states.append(decay * states[-1] + keys @ added[-1])
    o = start[..., None] * (q @ torch.stack(states[:-1], 1)) + (q @ k.mT * within) @ torch.stack(added, 1)
    o = o.flatten(2, 3).transpose(2, 3).flatten(1, 2)[:, :T].to(v.dtype)
    return o, None if cu_seqlens is not None else states[-1].flatten(1, 2)


def _unit(x: Tensor) -> Tensor:
    return x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt()


class GatedDeltaNet(RecurrentMixer):
    """The token mixer of Gated DeltaNet, with a short convolution of q, k and v that may be dynamic.

        qkv, z, b, a = in_proj(hidden_states)
        q, k, v = silu(conv(qkv))
        o = gated_delta_rule(q, k, v, -exp(A_log) * softplus(a + dt_bias), sigmoid(b))
        out_proj(norm_weight * rms_norm(o) * silu(z))        normalised in every value head by itself

    (Yang et al. 2024, section 3.4)

    Args:
        dim: C, channels of the input and output.
        num_key_heads: G, divides H.
        num_value_heads: H.
        key_head_dim: K.
        value_head_dim: V.
        conv: filters of the convolution: "static", dynamic "headwise" or "lowrank", or "none", which leaves SiLU only.
        width: W, taps of the convolution.
        rank: rank of the filters, for conv="lowrank".
        conv_head_dim: channels that share a filter, for conv="headwise"; divides 2 G K + H V.
        chunk_size: Q, tokens of the recurrence that are computed at once.
        norm_eps: added to the mean square in the norm.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: sizes or options that do not fit, named with their values.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_key_heads: int,
        num_value_heads: int,
        key_head_dim: int,
        value_head_dim: int,
        conv: ConvKind = "static",
        width: int = 4,
        rank: int = 16,
        conv_head_dim: int = 16,
        chunk_size: int = 64,
        norm_eps: float = 1e-6,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        check_multiple("num_value_heads", num_value_heads, "num_key_heads", num_key_heads)
        inner_dim = num_value_heads * value_head_dim
        conv_sizes = [num_key_heads * key_head_dim, num_key_heads * key_head_dim, inner_dim]
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(
            dim,
            sizes=[sum(conv_sizes), inner_dim, num_value_heads, num_value_heads],
            conv_sizes=conv_sizes,
            inner_dim=inner_dim,
            num_heads=num_value_heads,
            conv=conv,
            width=width,
            rank=rank,
            conv_head_dim=conv_head_dim,
            conv_bias=False,
            chunk_size=chunk_size,
            norm_eps=norm_eps,
            bias=False,
            **factory,
        )
        self.key_head_dim, self.value_head_dim = key_head_dim, value_head_dim
        self.norm_weight = nn.Parameter(torch.empty(value_head_dim, **factory))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """A to U(0.01, 16), softplus(dt_bias) log-uniform in [0.001, 0.1], as in fla; the norm to 1."""
        self._reset_time_steps()
        self.A_log.uniform_(0.01, 16).log_()
        nn.init.ones_(self.norm_weight)

    def _mix(self, hidden_states: Tensor, parts: tuple[Tensor, ...], stream: Stream) -> Tensor:
        qkv, z, b, a = parts
        q, k, v = self._convolve(qkv, hidden_states, stream)
        q, k = (tensor.unflatten(-1, (-1, self.key_head_dim)) for tensor in (q, k))
        v, z = (tensor.unflatten(-1, (-1, self.value_head_dim)) for tensor in (v, z))
        dt, rates = self._time_steps(a, stream)
        o = stream.recur(gated_delta_rule, "state", q, k, v, rates * dt, b.sigmoid(), chunk_size=self.chunk_size)
        o = F.rms_norm(o.to(dt.dtype), o.shape[-1:], eps=self.norm_eps) * self.norm_weight * F.silu(z.to(dt.dtype))
        return o.flatten(-2)
