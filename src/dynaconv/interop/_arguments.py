"""Checks of the peers' arguments, in the peers' words, and the static convolution that three of them have."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_dense
from ..functional import static_conv


def check(
    name: str, tensor: object, layout: str, like: Tensor | None = None, *, integers: bool = False, **sizes: int | None
) -> torch.Size:
    """The shape of an argument that has the given layout.

    Args:
        name: of the argument.
        tensor: its value.
        layout: its dimensions, names or numbers, such as "D 1 W".
        like: x, whose device it must share; None: any device.
        integers: it holds int32 or int64, not floating-point numbers.
        **sizes: dimensions that are known from other arguments, None if not.

    Raises:
        TypeError: not a dense tensor, of another kind of dtype, or on another device.
        ValueError: the shape does not have the layout.
    """
    check_dense(name, tensor)
    kind = "an int32 or int64" if integers else "a floating-point"
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be {kind} tensor; got {type(tensor).__name__}")
    if not (tensor.dtype in (torch.int32, torch.int64) if integers else tensor.is_floating_point()):
        raise TypeError(f"{name} must be {kind} tensor; got a tensor of {tensor.dtype}")
    if like is not None and tensor.device != like.device:
        raise TypeError(f"{name} must be on the device of x, {like.device}; got {tensor.device}")
    dims = layout.split()
    expected = [int(dim) if dim.isdigit() else sizes.get(dim) for dim in dims]
    if len(tensor.shape) != len(dims) or any(e not in (None, s) for e, s in zip(expected, tensor.shape, strict=True)):
        words = ", ".join(
            dim if size is None or dim.isdigit() else f"{dim} = {size}"
            for dim, size in zip(dims, expected, strict=True)
        )
        raise ValueError(f"{name} must be [{words}]; got {list(tensor.shape)}")
    return tensor.shape


def parameters_of(module: nn.Module | Mapping[str, Tensor], names: Iterable[str]) -> Mapping[str, Tensor]:
    """The parameters of a peer's module, or its state dict.

    Raises:
        ValueError: one of the names is missing.
    """
    parameters = dict(module.named_parameters()) if isinstance(module, nn.Module) else module
    if missing := set(names) - set(parameters):
        raise ValueError(f"parameters must have {' and '.join(sorted(missing))}; got {', '.join(parameters) or 'none'}")
    return parameters


def count_sequences(cu_seqlens: Tensor, x: Tensor, name: str = "cu_seqlens") -> int:
    """N of `cu_seqlens`, [N + 1]."""
    ends = check(name, cu_seqlens, "N+1", x, integers=True)[0]
    if ends == 0:
        raise ValueError(f"{name} must be [N+1] with N >= 0; got [0]")
    return ends - 1


def short_conv(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, **keywords: Any) -> Tensor:
    """The causal `static_conv` of [B, T, D] with filters [D, W], where "swish" is another name of "silu"."""
    keywords["activation"] = "silu" if activation == "swish" else activation
    return static_conv(x, weight, bias=bias, **keywords)


def separate_sequences(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, seq_idx: Tensor, past: Tensor | None
) -> Tensor:
    """The convolution of [B, T, D] with every run of equal `seq_idx` a sequence of its own."""
    B, T, D = x.shape
    opens = torch.ones_like(seq_idx, dtype=torch.bool)
    opens[:, 1:] = seq_idx[:, 1:] != seq_idx[:, :-1]
    row, token = opens.nonzero(as_tuple=True)
    cu_seqlens = F.pad(row * T + token, (0, 1), value=B * T)
    if past is not None:
        past = past[row].masked_fill((token > 0)[:, None, None], 0)
    out = short_conv(x.reshape(1, B * T, D), weight, bias, activation, cu_seqlens=cu_seqlens, initial_state=past)
    return out.view(B, T, D).masked_fill((seq_idx < 0)[..., None], 0)
