"""What the token mixers with a recurrence share: chunks, decays, fla's kernels, and the short convolution in front.

Dims: B batch, T tokens, C channels, H heads, Q tokens of a chunk, M chunks.
"""

import functools
import importlib
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .shortconv import KINDS, DynamicShortConv, ShortConv
from .shortconv_group import short_conv
from .stream import Stream

ConvKind = Literal["none", "static", "headwise", "lowrank"]
CONV_KINDS = ("none", *reversed(KINDS))
Function = TypeVar("Function", bound=Callable[..., Any])


def chunk_sizes(tokens: int, chunk_size: int) -> tuple[int, int]:
    """M and Q: how many chunks, at least one, of how many tokens, at most T, so that a single token is cheap.

    Raises:
        ValueError: `chunk_size` is not at least 1.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1; got {chunk_size}")
    size = max(1, min(chunk_size, tokens))
    return max(1, -(-tokens // size)), size


def chunked(x: Tensor, chunks: int, size: int) -> Tensor:
    """x [B, T, H, ...] as [B, M, H, Q, ...], with zeros after the last token."""
    padding = (0, 0) * (x.dim() - 2) + (0, chunks * size - x.shape[1])
    return F.pad(x, padding).unflatten(1, (chunks, size)).transpose(2, 3)


class Decays(NamedTuple):
    """By how much states decay inside chunks; zero between sequences.

    Attributes:
        within: [B, M, H, Q, Q], from token j to token i >= j, else 0.
        start: [B, M, H, Q], from the end of the chunk before to token i.
        end: [B, M, H, Q], from token j to the end of the chunk.
    """

    within: Tensor
    start: Tensor
    end: Tensor


def chunk_decays(log_decay: Tensor, cu_seqlens: Tensor | None, chunks: int, size: int) -> Decays:
    """Decays of log_decay [B, T, H]; 0 between packed sequences, which so take no more memory than others."""
    B, T, _ = log_decay.shape
    total = chunked(log_decay, chunks, size).cumsum(-1)
    within, start, end = total[..., :, None] - total[..., None, :], total, total[..., -1:] - total
    apart = torch.ones(size, size, dtype=torch.bool, device=total.device).triu(1)
    if cu_seqlens is not None:
        tokens = torch.arange(B * T, device=total.device).view(B, T, 1)
        sequence = chunked(torch.bucketize(tokens, cu_seqlens[1:], right=True), chunks, size)
        apart = apart | (sequence[..., :, None] != sequence[..., None, :])
        before = F.pad(sequence[:, :-1, :, -1:], (0, 0, 0, 0, 1, 0), value=-1)
        start = start.masked_fill(sequence != before, -math.inf)
        end = end.masked_fill(sequence != sequence[..., -1:], -math.inf)
    # Masked before the exponential: differences above the diagonal are positive and overflow.
    return Decays(within.masked_fill(apart, -math.inf).exp(), start.exp(), end.exp())


def check_sequences(initial_state: Tensor | None, cu_seqlens: Tensor | None) -> None:
    """Raise ValueError where both are given."""
    if initial_state is not None and cu_seqlens is not None:
        raise ValueError("packed sequences start from zero: give either initial_state or cu_seqlens; got both")


def check_multiple(name: str, value: int, of: str, divisor: int) -> None:
    """Raise ValueError unless `value` is a positive multiple of `divisor`."""
    if divisor < 1 or value < 1 or value % divisor:
        raise ValueError(f"{name} must be a positive multiple of {of}; got {name} = {value}, {of} = {divisor}")


def without_autocast(function: Function) -> Function:
    """`function` of tensors on one device, with autocast off: it would round the products of the recurrence."""

    @functools.wraps(function)
    def wrapped(*arguments: Any, **keywords: Any) -> Any:
        device = next(iter((*arguments, *keywords.values()))).device.type
        if not torch.amp.is_autocast_available(device):
            return function(*arguments, **keywords)
        with torch.autocast(device, enabled=False):
            return function(*arguments, **keywords)

    return cast(Function, wrapped)


def fla_kernel(module: str, name: str, x: Tensor) -> Callable[..., tuple[Tensor, Tensor | None]] | None:
    """The function `name` of `fla.ops.module` where it is installed and x is on CUDA, of 16 bits and not empty.

    fp32 stays with plain PyTorch: the kernel of the delta rule refuses it.
    """
    suits = _on_cuda(x) and x.dtype in (torch.bfloat16, torch.float16) and x.numel() > 0
    return _import_fla(module, name) if suits else None


def call_fla(
    kernel: Callable[..., tuple[Tensor, Tensor | None]],
    tensors: dict[str, Tensor],
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Call a kernel of fla, which takes packed sequences as one row, with tensors [B, T, ...] by name."""
    shape = next(iter(tensors.values())).shape[:2]
    if cu_seqlens is not None:
        tensors = {name: tensor.flatten(0, 1)[None] for name, tensor in tensors.items()}
        options["cu_seqlens"] = cu_seqlens.long()
    y, state = kernel(**tensors, initial_state=initial_state, output_final_state=cu_seqlens is None, **options)
    return y.reshape(*shape, *y.shape[2:]), state


def _on_cuda(x: Tensor) -> bool:
    return x.is_cuda


@functools.cache
def _import_fla(module: str, name: str) -> Callable[..., tuple[Tensor, Tensor | None]] | None:
    try:
        return getattr(importlib.import_module(f"fla.ops.{module}"), name)
    except ImportError:
        return None


class RecurrentMixer(nn.Module):
    """What the mixers share: the projections, the short convolution, time steps and decay rates.

    The short convolution runs over the concatenated channels, with SiLU behind it and no residual. Its filters, where
    they are dynamic, are made from the input of the mixer.
    """

    def __init__(
        self,
        dim: int,
        *,
        sizes: list[int],
        conv_sizes: list[int],
        inner_dim: int,
        num_heads: int,
        conv: ConvKind,
        width: int,
        rank: int,
        conv_head_dim: int,
        conv_bias: bool,
        chunk_size: int,
        norm_eps: float,
        bias: bool,
        **factory: Any,
    ):
        super().__init__()
        if conv not in CONV_KINDS:
            raise ValueError(f"conv must be one of {', '.join(CONV_KINDS)}; got {conv!r}")
        if chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1; got {chunk_size}")
        self.dim, self.sizes, self.conv_sizes, self.num_heads = dim, sizes, conv_sizes, num_heads
        self.conv_kind, self.chunk_size, self.norm_eps = conv, chunk_size, norm_eps
        self.in_proj = nn.Linear(dim, sum(sizes), bias=bias, **factory)
        self.out_proj = nn.Linear(inner_dim, dim, bias=bias, **factory)
        self.A_log = nn.Parameter(torch.empty(num_heads, **factory))
        self.dt_bias = nn.Parameter(torch.empty(num_heads, **factory))
        options: dict[str, Any] = {"bias": conv_bias, "activation": "silu", "residual": False, **factory}
        self.conv: ShortConv | DynamicShortConv | None = None
        if conv == "headwise":
            check_multiple("channels of the convolution", sum(conv_sizes), "conv_head_dim", conv_head_dim)
        if conv != "none":
            sizes_of_filters = {"width": width, "rank": rank, "head_dim": conv_head_dim, "condition_dim": dim}
            self.conv = short_conv(sum(conv_sizes), conv, **sizes_of_filters, **options)

    @torch.no_grad()
    def _reset_time_steps(self) -> None:
        """softplus(dt_bias) log-uniform in [0.001, 0.1], Mamba-2's."""
        dt = torch.empty_like(self.dt_bias, dtype=torch.float32).uniform_(math.log(1e-3), math.log(1e-1)).exp()
        self.dt_bias.copy_(dt + (-torch.expm1(-dt)).log())

    def _convolve(self, x: Tensor, condition: Tensor, stream: Stream) -> tuple[Tensor, ...]:
        """SiLU of the convolution, split into its parts; zeros at padding, where the bias has left something."""
        if self.conv is None:
            y = F.silu(x)
        else:
            y = stream.convolve(self.conv, "conv", x, condition if isinstance(self.conv, DynamicShortConv) else None)
        return stream.masked(y).split(self.conv_sizes, dim=-1)

    def _time_steps(self, x: Tensor, stream: Stream) -> tuple[Tensor, Tensor]:
        """dt = softplus(x + dt_bias), [B, T, H], 0 at padding, which so leaves states as they are, and -exp(A_log)."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        return stream.masked(F.softplus(x + self.dt_bias.to(x.dtype))), -self.A_log.to(x.dtype).exp()

    def forward(self, hidden_states: Tensor, stream: Stream | None = None) -> Tensor:
        """Mix the tokens of every sequence.

        Args:
            hidden_states: [B, T, C].
            stream: the sequences, and what is kept of them between calls: Stream(states=StreamStates()) with the same
                states in every call. None: every row is one sequence.

        Returns:
            [B, T, C].

        Raises:
            ValueError: `hidden_states` are not [B, T, C].
        """
        if hidden_states.dim() != 3 or hidden_states.shape[2] != self.dim:
            shape = list(hidden_states.shape)
            raise ValueError(f"hidden_states must be [B, T, dim] with dim = {self.dim}; got {shape}")
        stream = stream or Stream()
        hidden_states = stream.masked(hidden_states)
        parts = self.in_proj(hidden_states).split(self.sizes, dim=-1)
        return self.out_proj(self._mix(hidden_states, parts, stream).to(parts[0].dtype))

    def _mix(self, hidden_states: Tensor, parts: tuple[Tensor, ...], stream: Stream) -> Tensor:
        """The input of `out_proj`, from the parts of the output of `in_proj`."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """The sizes and the kind of convolution, for `print`."""
        return f"{self.dim}, num_heads={self.num_heads}, conv={self.conv_kind}, chunk_size={self.chunk_size}"
