"""The token mixer of Mamba-2, with static, dynamic or no short convolution.

Source: *Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State Space Duality*
(Dao & Gu, 2024).

Dims: B batch, T tokens, C channels, H heads, P channels of a head, N state size, G groups of heads that share b and c,
R = H // G, Q tokens of a chunk, M chunks, S packed sequences.
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


def scan_flops(
    batch: int, tokens: int, num_heads: int, head_dim: int, state_size: int, n_groups: int = 1, chunk_size: int = 64
) -> int:
    """FLOPs of the matrix products in a forward call of :func:`state_space_scan`, see there."""
    chunks, size = chunk_sizes(tokens, chunk_size)
    inside = size * (n_groups * state_size + num_heads * head_dim)
    return 2 * batch * chunks * size * (inside + 2 * num_heads * state_size * head_dim)


@without_autocast
def state_space_scan(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    *,
    chunk_size: int = 64,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The recurrence of Mamba-2 (state space duality), in chunks.

        h_t = exp(dt_t a) h_{t-1} + dt_t b_t x_t^T
        y_t = h_t^T c_t

    for every head, with the b and c of its group: heads g R ... (g + 1) R - 1 belong to group g (Dao & Gu 2024,
    sections 5 and 6). Computed in fp32, or in fp64 where x is fp64. Where fla is installed, tensors in fp16 or bf16 on
    CUDA take its kernel `chunk_simple_gla`, which has a chunk size of its own.

    The matrix products have 2 B M Q (Q (G N + H P) + 2 H N P) FLOPs, with chunks of Q = min(chunk_size, T) tokens and
    M = ceil(T / Q), both at least 1; that is what :func:`scan_flops` returns and PyTorch's FlopCounterMode counts.

    Args:
        x: [B, T, H, P].
        dt: [B, T, H], time steps, >= 0.
        a: [H], rates, < 0.
        b: [B, T, G, N].
        c: [B, T, G, N].
        chunk_size: Q, tokens that are computed at once.
        initial_state: [B, H, N, P], h before the first token; None: zeros.
        cu_seqlens: [S + 1], the ends of packed sequences in the B rows of T tokens laid end to end; every row begins a
            sequence. None: every row is one sequence.

    Returns:
        y, [B, T, H, P] in the dtype of x, and h after the last token, [B, H, N, P]; with `cu_seqlens` None.

    Raises:
        ValueError: H is not a multiple of G, `chunk_size` is not at least 1, or both `initial_state` and `cu_seqlens`
            are given.
    """
    (B, T, H, P), (G, N) = x.shape, b.shape[2:]
    check_multiple("heads of x", H, "groups of b", G)
    check_sequences(initial_state, cu_seqlens)
    chunks, size = chunk_sizes(T, chunk_size)
    if kernel := fla_kernel("simple_gla", "chunk_simple_gla", x):
        q, k = (tensor.to(x.dtype).repeat_interleave(H // G, dim=2) for tensor in (c, b))
        tensors = {"q": q, "k": k, "v": (x * dt[..., None]).to(x.dtype), "g": dt.float() * a.float()}
        return call_fla(kernel, tensors, initial_state, cu_seqlens, scale=1.0)

    dtype = compute_dtype(x)
    dt, b, c = dt.to(dtype), chunked(b.to(dtype), chunks, size), chunked(c.to(dtype), chunks, size)
    values = chunked(x.to(dtype) * dt[..., None], chunks, size).unflatten(2, (G, -1))  # [B, M, G, R, Q, P]
    decays = chunk_decays(dt * a.to(dtype), cu_seqlens, chunks, size)
    within, start, end = (decay.unflatten(2, (G, -1)) for decay in decays)

    # b and c are never repeated for the R heads of a group: these stand beside one another in a matrix [., R * P].
    added = b.mT @ (values * end[..., None]).transpose(3, 4).flatten(4)
    whole = start[..., -1].unsqueeze(3)[..., None]  # [B, M, G, 1, R, 1]
    state = x.new_zeros(B, H, N, P, dtype=dtype) if initial_state is None else initial_state.to(dtype)
    states = [state.unflatten(1, (G, -1)).transpose(2, 3)]  # [B, G, N, R, P]
    for decay, new in zip(whole.unbind(1), added.unflatten(-1, (-1, P)).unbind(1), strict=True):
        states.append(decay * states[-1] + new)
    y = (c @ torch.stack(states[:-1], 1).flatten(4)).unflatten(-1, (-1, P)).transpose(3, 4) * start[..., None]
    y = y + ((c @ b.mT)[:, :, :, None] * within) @ values
    y = y.flatten(2, 3).transpose(2, 3).flatten(1, 2)[:, :T].to(x.dtype)
    return y, None if cu_seqlens is not None else states[-1].transpose(2, 3).flatten(1, 2)


class Mamba2(RecurrentMixer):
    """The token mixer of Mamba-2, with a short convolution of x, b and c that may be dynamic.

        z, xbc, dt = in_proj(hidden_states)
        x, b, c = silu(conv(xbc))
        y = state_space_scan(x, softplus(dt + dt_bias), -exp(A_log), b, c) + D * x
        out_proj(norm_weight * rms_norm(y * silu(z)))        normalised in every group of heads by itself

    (Dao & Gu 2024, section 7)

    Args:
        dim: C, channels of the input and output.
        num_heads: H.
        head_dim: P; H P = 2 C in the paper.
        state_size: N.
        n_groups: G, divides H.
        conv: filters of the convolution: "static", dynamic "headwise" or "lowrank", or "none", which leaves SiLU only.
        width: W, taps of the convolution.
        rank: rank of the filters, for conv="lowrank".
        conv_head_dim: channels that share a filter, for conv="headwise"; divides H P + 2 G N.
        chunk_size: Q, tokens of the recurrence that are computed at once.
        norm_eps: added to the mean square in the norm.
        bias: in `in_proj` and `out_proj`.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: sizes or options that do not fit, named with their values.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        head_dim: int = 64,
        state_size: int = 128,
        n_groups: int = 1,
        conv: ConvKind = "static",
        width: int = 4,
        rank: int = 16,
        conv_head_dim: int = 16,
        chunk_size: int = 64,
        norm_eps: float = 1e-5,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        check_multiple("num_heads", num_heads, "n_groups", n_groups)
        inner_dim = num_heads * head_dim
        conv_sizes = [inner_dim, n_groups * state_size, n_groups * state_size]
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(
            dim,
            sizes=[inner_dim, sum(conv_sizes), num_heads],
            conv_sizes=conv_sizes,
            inner_dim=inner_dim,
            num_heads=num_heads,
            conv=conv,
            width=width,
            rank=rank,
            conv_head_dim=conv_head_dim,
            conv_bias=True,
            chunk_size=chunk_size,
            norm_eps=norm_eps,
            bias=bias,
            **factory,
        )
        self.head_dim, self.state_size, self.n_groups = head_dim, state_size, n_groups
        self.D = nn.Parameter(torch.empty(num_heads, **factory))
        self.norm_weight = nn.Parameter(torch.empty(inner_dim, **factory))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """A to 1 ... H, softplus(dt_bias) log-uniform in [0.001, 0.1], D and the norm to 1."""
        self._reset_time_steps()
        self.A_log.copy_(torch.ones_like(self.A_log, dtype=torch.float32).cumsum(0).log())
        nn.init.ones_(self.D)
        nn.init.ones_(self.norm_weight)

    def _mix(self, hidden_states: Tensor, parts: tuple[Tensor, ...], stream: Stream) -> Tensor:
        z, xbc, dt = parts
        x, b, c = self._convolve(xbc, hidden_states, stream)
        x, b, c = x.unflatten(-1, (-1, self.head_dim)), *(y.unflatten(-1, (self.n_groups, -1)) for y in (b, c))
        dt, a = self._time_steps(dt, stream)
        y = stream.recur(state_space_scan, "state", x, dt, a, b, c, chunk_size=self.chunk_size)
        y = (y + self.D.to(dt.dtype)[:, None] * x).flatten(-2) * F.silu(z.to(dt.dtype))
        grouped = y.unflatten(-1, (self.n_groups, -1))
        return F.rms_norm(grouped, grouped.shape[-1:], eps=self.norm_eps).flatten(-2) * self.norm_weight
