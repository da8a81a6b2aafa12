"""The operators: a depthwise convolution whose filter is the same for every token, or differs from token to token.

    y[b, t, d] = sum_w f[b, t, d, w] * x[b, t + w - P, d]           x is 0 outside its own sequence, P = left padding

Dims: B batch, T tokens, D channels, H filters (D // H consecutive channels share one), W taps, N sequences (N = B).

Conventions, the same for every operator and implementation:

- Taps are in PyTorch's cross-correlation order: with causal padding the *last* tap multiplies the current token.
- `padding` is "causal" (P = W - 1), "same" (P = (W - 1) // 2, as PyTorch's "same") or an integer P in 0..W-1.
- `normalize="softmax"` takes the softmax over all W taps, in fp32, *before* any of them falls off the edge of a
  sequence; edges are not renormalised (Wu et al. 2019, section 3).
- fp16, bf16 and fp32 inputs are multiplied and summed in fp32, fp64 in fp64. The output has the dtype of x.
- The state of a stream is its last W - 1 inputs, [N, W - 1, D], oldest first, zeros before the first token. Any
  chunking of a sequence gives the numbers of the whole. Streams are causal.
"""

import contextlib
import importlib.util
import threading
from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .kernels.reference.dynamic import dynamic_conv as _reference_dynamic
from .kernels.reference.static import static_conv as _reference_static

__all__ = ["backend", "dynamic_conv", "left_padding", "static_conv"]

Padding = Literal["causal", "same"] | int
_BACKENDS = ("reference", "cpu")


class _Forced(threading.local):
    backend: str | None = None


_forced = _Forced()


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Force an implementation inside a `with` block, in this thread: "reference" (plain PyTorch) or "cpu" (Numba).

    What the kernels cannot do, function transforms, forward-mode derivatives and forked processes, takes the reference
    under "cpu" too.

    Without it, CPU tensors take the Numba kernels and everything else takes the reference.

    Raises:
        ValueError: the name is of no implementation.
    """
    if name not in _BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(_BACKENDS)}; got {name!r}")
    previous, _forced.backend = _forced.backend, name
    try:
        yield
    finally:
        _forced.backend = previous


def static_conv(
    x: Tensor,
    filters: Tensor,
    *,
    normalize: Literal["softmax"] | None = None,
    padding: Padding = "causal",
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    state: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Depthwise convolution with the same filters for every token.

    y[b, t, d] = sum_w filters[d // (D // H), w] * x[b, t + w - P, d]. With H = D every channel has its own filter (the
    short convolutions of Mamba-2 and Gated DeltaNet); with H < D and softmax it is LightConv (Wu et al. 2019,
    section 3).

    Args:
        x: [B, T, D], floating point, any strides.
        filters: [H, W] with H a divisor of D, any floating dtype and strides.
        normalize: None or "softmax" over W.
        padding: "causal", "same" or the number of zeros on the left, 0..W-1.
        initial_state: [B, W-1, D], the inputs before x[:, 0]; gradients flow into it.
        return_final_state: also return the last W-1 inputs, [B, W-1, D], to start the next chunk from.
        state: [B, W-1, D], an inference buffer that stands for `initial_state` and is overwritten with the final state.

    Returns:
        y, [B, T, D] in the dtype of x; with `return_final_state` the pair (y, final_state).

    Raises:
        TypeError: an argument is not a floating-point tensor, or tensors are on different devices.
        ValueError: shapes do not agree, or an option has no such value.
    """
    _check_tensor("x", x, 3)
    _check_tensor("filters", filters, 2, x)
    _check_filters(x, *filters.shape)
    x, left, length, final = _prepare(x, filters.shape[1], padding, initial_state, return_final_state, state)
    filters = _normalized(filters, normalize)
    if _kernel_is_usable(x, filters):
        from .kernels import library

        y = library.static_conv(x, filters, left, length)
    else:
        y = _reference_static(x, filters, left, length)
    return y if final is None or not return_final_state else (y, final)


def dynamic_conv(
    x: Tensor,
    filters: Tensor,
    *,
    normalize: Literal["softmax"] | None = None,
    padding: Padding = "causal",
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    state: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Depthwise convolution with a filter of its own for every token and head.

    y[b, t, d] = sum_w filters[b, t, d // (D // H), w] * x[b, t + w - P, d]. With softmax it is the convolution of
    DynamicConv (Wu et al. 2019, section 4); without, the head-wise short convolution of Sieberling et al. 2026.

    Args:
        x: [B, T, D], floating point, any strides.
        filters: [B, T, H, W] with H a divisor of D, any floating dtype and strides.
        normalize: None or "softmax" over W.
        padding: "causal", "same" or the number of zeros on the left, 0..W-1.
        initial_state: [B, W-1, D], the inputs before x[:, 0]; gradients flow into it.
        return_final_state: also return the last W-1 inputs, [B, W-1, D], to start the next chunk from.
        state: [B, W-1, D], an inference buffer that stands for `initial_state` and is overwritten with the final state.

    Returns:
        y, [B, T, D] in the dtype of x; with `return_final_state` the pair (y, final_state).

    Raises:
        TypeError: an argument is not a floating-point tensor, or tensors are on different devices.
        ValueError: shapes do not agree, or an option has no such value.
    """
    _check_tensor("x", x, 3)
    _check_tensor("filters", filters, 4, x)
    if filters.shape[:2] != x.shape[:2]:
        raise ValueError(f"filters must be [B, T, H, W] with the B, T of x, {_shape(x)}; got {_shape(filters)}")
    _check_filters(x, *filters.shape[2:])
    x, left, _, final = _prepare(x, filters.shape[3], padding, initial_state, return_final_state, state)
    filters = _normalized(filters, normalize)
    if _kernel_is_usable(x, filters):
        from .kernels import library

        y = library.dynamic_conv(x, filters, left)
    else:
        y = _reference_dynamic(x, filters, left)
    return y if final is None or not return_final_state else (y, final)


def left_padding(padding: Padding, width: int) -> int:
    """The number of zeros to the left of a sequence, for a filter of `width` taps.

    Raises:
        ValueError: not "causal", "same" or an integer in 0..width-1.
    """
    if padding == "causal":
        return width - 1
    if padding == "same":
        return (width - 1) // 2
    if isinstance(padding, int) and not isinstance(padding, bool) and 0 <= padding < width:
        return padding
    raise ValueError(f'padding must be "causal", "same" or an integer in 0..{width - 1} (W - 1); got {padding!r}')


def _prepare(
    x: Tensor, width: int, padding: Padding, initial: Tensor | None, return_final: bool, state: Tensor | None
) -> tuple[Tensor, int, int, Tensor | None]:
    """Put the state before x: the inputs, their left padding, the number of outputs, and the final state if wanted."""
    left, length = left_padding(padding, width), x.shape[1]
    if initial is None and state is None and not return_final:
        return x, left, length, None
    if left != width - 1:
        raise ValueError(f'a state needs padding="causal": it holds the inputs before the first; got {padding!r}')
    if initial is not None and state is not None:
        raise ValueError("give either initial_state or state: both name the inputs before x")
    name, past = ("state", state) if initial is None else ("initial_state", initial)
    if past is None:
        padded = F.pad(x, (0, 0, width - 1, 0))
        return x, left, length, padded[:, length:]
    _check_tensor(name, past, 3, x)
    if past.shape != (x.shape[0], width - 1, x.shape[2]):
        expected = [x.shape[0], width - 1, x.shape[2]]
        raise ValueError(f"{name} must be [B, W - 1, D] = {expected}; got {_shape(past)}")
    if state is not None and torch.is_grad_enabled() and (x.requires_grad or state.requires_grad):
        raise ValueError(
            "state is overwritten in place and carries no gradient: use it under torch.no_grad(), "
            "or train with initial_state and return_final_state"
        )
    padded = torch.cat([past.to(x.dtype), x], dim=1)
    final = padded[:, length:]
    if state is not None:
        state.copy_(final)
    return padded, 0, length, final


def _normalized(filters: Tensor, normalize: str | None) -> Tensor:
    if normalize is None:
        return filters
    if normalize == "softmax":
        return filters.softmax(-1, dtype=torch.promote_types(filters.dtype, torch.float32))
    raise ValueError(f'normalize must be None or "softmax"; got {normalize!r}')


def _kernel_is_usable(x: Tensor, filters: Tensor) -> bool:
    """Whether the Numba kernels serve these tensors. Function transforms and forked processes take the reference."""
    forced = _forced.backend
    if forced == "reference":
        return False
    if x.device.type != "cpu":
        if forced == "cpu":
            raise ValueError(f'backend("cpu") needs CPU tensors; x is on {x.device}')
        return False
    # Registered operators drop forward-mode tangents and refuse function transforms; the reference has both.
    if torch._C._are_functorch_transforms_active() or any(
        torch.autograd.forward_ad.unpack_dual(t).tangent is not None for t in (x, filters)
    ):
        return False
    if torch.compiler.is_compiling():
        return True
    if importlib.util.find_spec("numba") is None:
        return False
    from .kernels.cpu import runtime

    return runtime.is_usable()


def _check_tensor(name: str, tensor: Tensor, dims: int, like: Tensor | None = None) -> None:
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        kind = f"a tensor of {tensor.dtype}" if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"{name} must be a floating-point tensor; got {kind}")
    if tensor.dim() != dims:
        raise ValueError(f"{name} must have {dims} dimensions; got shape {_shape(tensor)}")
    if like is not None and tensor.device != like.device:
        raise TypeError(f"{name} must be on the device of x, {like.device}; got {tensor.device}")


def _check_filters(x: Tensor, heads: int, width: int) -> None:
    if width == 0:
        raise ValueError("filters must have at least one tap (W >= 1); got W = 0")
    if heads == 0 or x.shape[2] % heads:
        raise ValueError(f"filters must be for a number of heads that divides D; got H = {heads}, D = {x.shape[2]}")


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)
