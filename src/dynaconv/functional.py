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
- Packed batches: sequences behind one another in one row (B = 1), sequence n from `cu_seqlens[n]` to
  `cu_seqlens[n + 1]`. Nothing crosses a boundary, forwards or backwards. There are N sequences; otherwise N = B.
  Triton keeps the ends of a tensor `cu_seqlens`, so that only its first use, and the next after a change that PyTorch
  counts (an in-place operation; not one of another library, nor the replay of a CUDA graph), waits for a GPU.
- What follows the sum: output_scale * (activation(sum + bias) + x), with x only where `residual`.

Keywords that the three operators share:

    padding             "causal", "same" or the number of zeros on the left, 0..W-1
    bias                [D]
    activation          None or "silu", z * sigmoid(z)
    residual            add x
    output_scale        factor of the whole
    cu_seqlens          [N + 1], int32 or int64, on the device of x: 0, then the ends of the sequences, the last one T
    initial_state       [N, W-1, D], the inputs before each sequence; gradients flow into it
    return_final_state  also return the last W-1 inputs of each sequence, [N, W-1, D], to start the next chunk from;
                        gradients flow through it
    state               [M, S, D] with S >= W-1, an inference buffer that stands for `initial_state` and is overwritten
                        with the last S inputs; S - (W-1) of them can be taken back by :func:`rollback`
    state_indices       [N] integers: the row of `state` that belongs to each sequence, all different, or -1 for a row
                        of padding, whose output is 0 and which changes no state; None: row n belongs to sequence n

They return y, [B, T, D] in the dtype of x; with `return_final_state` the pair (y, final_state). They raise TypeError
where an argument is not a dense floating-point tensor or tensors are on different devices, and ValueError where shapes
do not agree or an option has no such value.
"""

import inspect
import numbers
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypedDict, overload

import torch
from torch import Tensor

from .checks import check_cu_seqlens, check_filters, check_state_indices, check_tensor, check_tokens, shape
from .dispatch import Call, backend, run
from .kernels.operators import OPERATORS
from .kernels.options import Options
from .kernels.sequences import write_rows

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["backend", "dynamic_conv", "left_padding", "lowrank_conv", "rollback", "static_conv"]

Padding = Literal["causal", "same"] | int
Normalize = Literal["softmax"] | None


class _Shared(TypedDict, total=False):
    padding: Padding
    bias: Tensor | None
    activation: Literal["silu"] | None
    residual: bool
    output_scale: float
    cu_seqlens: Tensor | None
    initial_state: Tensor | None
    state: Tensor | None
    state_indices: Tensor | None


class Keywords(_Shared, total=False):
    """The keywords that the operators share; see :mod:`dynaconv.functional`."""

    return_final_state: Literal[False]


class KeywordsOfPair(_Shared):
    """The same where a pair (y, final_state) is returned."""

    return_final_state: Literal[True]


def _prepare(
    x: Tensor, width: int, *, padding: Padding = "causal", bias: Tensor | None = None,
    activation: Literal["silu"] | None = None, residual: bool = False, output_scale: float = 1.0,
    cu_seqlens: Tensor | None = None, initial_state: Tensor | None = None, return_final_state: bool = False,
    state: Tensor | None = None, state_indices: Tensor | None = None,
) -> Call:  # fmt: skip
    B, _, D = x.shape
    left = left_padding(padding, width)
    if activation not in (None, "silu"):
        raise ValueError(f'activation must be None or "silu"; got {activation!r}')
    if bias is not None:
        check_tensor("bias", bias, 1, x)
        if len(bias) != D:
            raise ValueError(f"bias must be [D] = [{D}]; got {shape(bias)}")
    if not isinstance(residual, bool):
        raise TypeError(f"residual must be True or False; got {type(residual).__name__}")
    if not isinstance(return_final_state, bool):
        raise TypeError(f"return_final_state must be True or False; got {type(return_final_state).__name__}")
    if isinstance(output_scale, bool) or not isinstance(output_scale, (int, float)):
        raise TypeError(f"output_scale must be a number, it has no gradient; got {type(output_scale).__name__}")
    options = Options(left, activation == "silu", residual, float(output_scale))
    sequences = B
    if cu_seqlens is not None:
        check_cu_seqlens(cu_seqlens, x)
        sequences = len(cu_seqlens) - 1
    if state_indices is not None and state is None:
        raise ValueError("state_indices needs a state")
    if initial_state is None and state is None and not return_final_state:
        return Call(options, width, bias, None, cu_seqlens)
    if left != width - 1:
        raise ValueError(f'a state needs padding="causal": it holds the inputs before the first; got {padding!r}')
    if initial_state is not None and state is not None:
        raise ValueError("give either initial_state or state: both name the inputs before x")
    if initial_state is not None:
        check_tensor("initial_state", initial_state, 3, x)
        if initial_state.shape != (sequences, width - 1, D):
            expected = [sequences, width - 1, D]
            raise ValueError(f"initial_state must be [N, W - 1, D] = {expected}; got {shape(initial_state)}")
    if state is not None:
        _check_state(x, state, state_indices, sequences, width)
    return Call(options, width, bias, initial_state, cu_seqlens, return_final_state, state, state_indices)


_KEYWORDS = tuple(inspect.signature(_prepare).parameters)[2:]


def _with_keywords(function: Callable[..., Any]) -> Callable[..., Any]:
    """The operator, whose signature lists the keywords, as `help` and completion show it."""
    signature = inspect.signature(function)
    shared = [p.replace(kind=p.KEYWORD_ONLY) for p in inspect.signature(_prepare).parameters.values()][2:]
    own = [p for p in signature.parameters.values() if p.kind != p.VAR_KEYWORD]
    vars(function)["__signature__"] = signature.replace(parameters=[*own, *shared])
    return function


@overload
def static_conv(
    x: Tensor, filters: Tensor, *, normalize: Normalize = None, **keywords: "Unpack[Keywords]",
) -> Tensor: ...  # fmt: skip
@overload
def static_conv(
    x: Tensor, filters: Tensor, *, normalize: Normalize = None, **keywords: "Unpack[KeywordsOfPair]",
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
@_with_keywords
def static_conv(x: Tensor, filters: Tensor, *, normalize: Normalize = None, **keywords: Any) -> Any:
    """Depthwise convolution with the same filters for every token.

    y[b, t, d] = sum_w filters[d // (D // H), w] * x[b, t + w - P, d]. With H = D every channel has its own filter (the
    short convolutions of Mamba-2 and Gated DeltaNet); with H < D and softmax it is LightConv (Wu et al. 2019,
    section 3).

    Args:
        x: [B, T, D], floating point, any strides.
        filters: [H, W] with H a divisor of D, any floating dtype and strides.
        normalize: None or "softmax" over W.
        **keywords: as for every operator, see :mod:`dynaconv.functional`, which also says what is returned and raised.
    """
    return run(OPERATORS["static"], _check_static, _normalizer(normalize), keywords, x, filters)


@overload
def dynamic_conv(
    x: Tensor, filters: Tensor, *, normalize: Normalize = None, static: Tensor | None = None,
    **keywords: "Unpack[Keywords]",
) -> Tensor: ...  # fmt: skip
@overload
def dynamic_conv(
    x: Tensor, filters: Tensor, *, normalize: Normalize = None, static: Tensor | None = None,
    **keywords: "Unpack[KeywordsOfPair]",
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
@_with_keywords
def dynamic_conv(
    x: Tensor, filters: Tensor, *, normalize: Normalize = None, static: Tensor | None = None, **keywords: Any
) -> Any:
    """Depthwise convolution with a filter of its own for every token and head.

    y[b, t, d] = sum_w filters[b, t, d // (D // H), w] * x[b, t + w - P, d]. With softmax it is the convolution of
    DynamicConv (Wu et al. 2019, section 4); without, the head-wise short convolution of Sieberling et al. 2026.

    Args:
        x: [B, T, D], floating point, any strides.
        filters: [B, T, H, W] with H a divisor of D, any floating dtype and strides.
        normalize: None or "softmax" over W.
        static: [D, W] or [Hs, W], added to the (normalised) filters of every token.
        **keywords: as for every operator, see :mod:`dynaconv.functional`, which also says what is returned and raised.
    """
    return run(OPERATORS["dynamic"], _check_dynamic, _normalizer(normalize), keywords, x, filters, static)


@overload
def lowrank_conv(
    x: Tensor, codes: Tensor, basis: Tensor, *, static: Tensor | None = None, **keywords: "Unpack[Keywords]",
) -> Tensor: ...  # fmt: skip
@overload
def lowrank_conv(
    x: Tensor, codes: Tensor, basis: Tensor, *, static: Tensor | None = None, **keywords: "Unpack[KeywordsOfPair]",
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
@_with_keywords
def lowrank_conv(x: Tensor, codes: Tensor, basis: Tensor, *, static: Tensor | None = None, **keywords: Any) -> Any:
    """Depthwise convolution with a filter of its own for every token and channel, of low rank.

    y[b, t, d] = sum_w (sum_r codes[b, t, r] basis[r, d, w]) * x[b, t + w - P, d]: the main setting of Sieberling et al.
    2026. The filters never exist as a whole.

    Args:
        x: [B, T, D], floating point, any strides.
        codes: [B, T, R], any floating dtype and strides.
        basis: [R, D, W], any floating dtype and strides.
        static: [D, W] or [Hs, W], added to the filters of every token.
        **keywords: as for every operator, see :mod:`dynaconv.functional`, which also says what is returned and raised.
    """
    return run(OPERATORS["lowrank"], _check_lowrank, None, keywords, x, codes, basis, static)


def left_padding(padding: Padding, width: int) -> int:
    """The number of zeros to the left of a sequence, for a filter of `width` taps.

    Raises:
        ValueError: not "causal", "same" or an integer in 0..width-1.
    """
    if padding == "causal":
        return width - 1
    if padding == "same":
        return (width - 1) // 2
    if isinstance(padding, numbers.Integral) and not isinstance(padding, bool) and 0 <= (left := int(padding)) < width:
        return left
    raise ValueError(f'padding must be "causal", "same" or an integer in 0..{width - 1} (W - 1); got {padding!r}')


def rollback(state: Tensor, count: int | Tensor, width: int, *, state_indices: Tensor | None = None) -> None:
    """Take the last inputs of streams back, in place, as speculative decoding does with rejected tokens.

    Args:
        state: [M, S, D], the buffer given as `state`. Tokens that are taken back leave it with so many fewer to
            spare, until as many have come again.
        count: tokens to take back, 0..S-(W-1): a number, or [N] integers, one for each sequence.
        width: W, the taps of the filters.
        state_indices: [N], the rows of `state` that the sequences have, -1 for none; None: all rows in order.

    Raises:
        TypeError: `state` or `state_indices` is not a tensor of the right kind, or on another device; `count` or
            `width` is not an integer.
        ValueError: shapes do not agree, `count` is negative or more than the buffer has to spare, or `width` is not
            positive.
    """
    check_tensor("state", state, 3)
    if isinstance(width, bool) or not isinstance(width, numbers.Integral):
        raise TypeError(f"width must be an integer; got {type(width).__name__}")
    if width < 1:
        raise ValueError(f"width must be at least 1; got {width}")
    rows, size, channels = state.shape
    if state_indices is None:
        indices = torch.arange(rows, device=state.device)
    else:
        check_state_indices(state_indices, state, None)
        indices = state_indices.long()
    counts = torch.as_tensor(count, device=state.device)
    if counts.dtype.is_floating_point or counts.dtype == torch.bool:
        raise TypeError(f"count must be an integer or a tensor of integers; got {counts.dtype}")
    if counts.dim() and counts.shape != indices.shape:
        raise ValueError(f"count must be a number or [N] = {shape(indices)}; got {shape(counts)}")
    spare = size - (width - 1)
    if spare < 0:
        raise ValueError(f"state must be [M, S, D] with S >= W - 1 = {width - 1}; got {shape(state)}")
    if bool(((counts < 0) | (counts > spare)).any()):
        raise ValueError(
            f"count must be in 0..{spare} (S - (W - 1)), what the state has to spare; got {counts.tolist()}"
        )
    if rows == 0 or len(indices) == 0:
        return
    source = (torch.arange(size, device=state.device) - counts.expand(indices.shape)[:, None]).clamp(min=-1)
    old = state.index_select(0, indices.clamp(min=0))
    shifted = old.gather(1, source.clamp(min=0)[..., None].expand(-1, -1, channels))
    write_rows(state, indices, shifted.masked_fill(source[..., None] < 0, 0))


def _check_static(x: Tensor, filters: Tensor, **keywords: Any) -> Call:
    check_tensor("x", x, 3)
    check_filters("filters", filters, 2, x)
    return _call(x, filters.shape[1], "static_conv", keywords)


def _check_dynamic(x: Tensor, filters: Tensor, static: Tensor | None, **keywords: Any) -> Call:
    check_tensor("x", x, 3)
    check_filters("filters", filters, 4, x)
    check_tokens("filters", "[B, T, H, W]", filters, x)
    if static is not None:
        check_filters("static", static, 2, x, filters.shape[3])
    return _call(x, filters.shape[3], "dynamic_conv", keywords)


def _check_lowrank(x: Tensor, codes: Tensor, basis: Tensor, static: Tensor | None, **keywords: Any) -> Call:
    check_tensor("x", x, 3)
    check_tensor("codes", codes, 3, x)
    check_tokens("codes", "[B, T, R]", codes, x)
    check_tensor("basis", basis, 3, x)
    if basis.shape[:2] != (codes.shape[2], x.shape[2]) or basis.shape[2] == 0:
        expected = f"[{codes.shape[2]}, {x.shape[2]}, W >= 1]"
        raise ValueError(f"basis must be [R, D, W] with the R of codes and the D of x, {expected}; got {shape(basis)}")
    if static is not None:
        check_filters("static", static, 2, x, basis.shape[2])
    return _call(x, basis.shape[2], "lowrank_conv", keywords)


def _call(x: Tensor, width: int, operator: str, keywords: dict[str, Any]) -> Call:
    for name in keywords:
        if name not in _KEYWORDS:
            raise TypeError(f"{operator} has no keyword {name!r}; those of every operator are {', '.join(_KEYWORDS)}")
    return _prepare(x, width, **keywords)


def _check_state(x: Tensor, state: Tensor, indices: Tensor | None, sequences: int, width: int) -> None:
    check_tensor("state", state, 3, x)
    rows, size, channels = state.shape
    if channels != x.shape[2] or size < width - 1 or (indices is None and rows != sequences):
        expected = f"[{sequences if indices is None else 'rows'}, W - 1 = {width - 1} or more, {x.shape[2]}]"
        raise ValueError(f"state must be [M, S, D] = {expected}; got {shape(state)}")
    strides = state.stride()
    if 0 in strides and any(n > 1 and step == 0 for n, step in zip(state.shape, strides, strict=True)):
        raise ValueError("state must not be expanded: its rows are overwritten")
    if indices is not None:
        check_state_indices(indices, state, sequences)


def _normalizer(normalize: str | None) -> Callable[[Tensor], Tensor] | None:
    if normalize is None:
        return None
    if normalize == "softmax":
        return _softmax
    raise ValueError(f'normalize must be None or "softmax"; got {normalize!r}')


def _softmax(filters: Tensor) -> Tensor:
    return filters.softmax(-1, dtype=torch.promote_types(filters.dtype, torch.float32))
