"""Functions and the module of flash-linear-attention 0.6 (`fla.modules.causal_conv1d`), for every device and dtype.

    y[b, t, d] = activation(sum_w weight[d, w] * x[b, t + w - (W - 1), d] + bias[d]) + residual[b, t, d]

Tap order is ours. States are [N, D, W], oldest first: W inputs, one more than the convolution reads. The weight of a
ShortConvolution module is that of an `nn.Conv1d`: see :mod:`dynaconv.interop.conv1d`.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.sequences import final_states
from ._arguments import check, count_sequences, separate_sequences, short_conv

__all__ = ["ShortConvolution", "causal_conv1d", "causal_conv1d_update", "export_state", "import_state"]

_BACKENDS = ("triton", "cuda", "mix")


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
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    activation: str | None = None,
    backend: str | None = "triton",
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,  # noqa: ARG001
    chunk_indices: Tensor | None = None,  # noqa: ARG001
    cp_context: None = None,
    *,
    seq_idx: Tensor | None = None,
    **kwargs: Any,  # noqa: ARG001
) -> tuple[Tensor, Tensor | None]:
    """Causal depthwise convolution.

    Gradients flow into x, weight, bias, residual and initial_state, also through the final state.

    Args:
        x: [B, T, D] or [B, T, H, K] with H * K = D, floating point, any strides.
        weight: [D, W].
        bias: [D].
        residual: of the shape of x, added after the activation.
        initial_state: [N, D, W], the inputs before each sequence.
        output_final_state: also return the last W inputs of each sequence.
        activation: None, "silu" or "swish" (the same).
        backend: fla's choice of a kernel, "triton", "cuda" or "mix", or None: all the same here. Ours is
            :func:`dynaconv.backend`.
        cu_seqlens: [N + 1], int32 or int64: the sequences of a packed row (B = 1).
        cu_seqlens_cpu: ignored: a copy of `cu_seqlens`.
        chunk_indices: ignored: derived from `cu_seqlens`.
        cp_context: None; context parallelism is not available.
        seq_idx: [B, T], int32 or int64: the sequence that each token belongs to, in runs of equal numbers, as in
            :func:`dynaconv.interop.causal_conv1d.causal_conv1d_fn`; there is no final state with it. Ignored beside
            `cu_seqlens`, which it is derived from.
        **kwargs: ignored, as by fla.

    Returns:
        The pair (y, final_state): y of the shape and dtype of x; final_state [N, D, W], None unless asked for.

    Raises:
        TypeError: an argument is not a tensor of the right kind, or on another device than x.
        ValueError: shapes that do not agree, an unknown activation or backend, or a `cp_context`.
    """
    if cp_context is not None:
        raise ValueError(f"cp_context must be None: context parallelism is not available; got {cp_context!r}")
    _check_backend(backend, (*_BACKENDS, None))
    tokens = _channels("x", x)
    B, T, D = tokens.shape
    W = check("weight", weight, "D W", x, D=D)[1]
    N = B if cu_seqlens is None else count_sequences(cu_seqlens, x)
    past = None
    if initial_state is not None:
        check("initial_state", initial_state, "N D W", x, N=N, D=D, W=W)
        past = import_state(initial_state)
    if residual is not None:
        residual = _channels("residual", residual)
        check("residual", residual, "B T D", x, B=B, T=T, D=D)
    if seq_idx is not None and cu_seqlens is None:
        check("seq_idx", seq_idx, "B T", x, integers=True, B=B, T=T)
        if output_final_state:
            raise ValueError("output_final_state must be False with seq_idx: a row has no single state; got True")
        y = separate_sequences(tokens, weight, bias, activation, seq_idx, past)
    else:
        y = short_conv(tokens, weight, bias, activation, cu_seqlens=cu_seqlens, initial_state=past)
    if residual is not None:
        y = (y + residual).to(x.dtype)
    y = y.reshape(x.shape)
    if not output_final_state:
        return y, None
    before = None if initial_state is None else initial_state.transpose(1, 2)
    final = final_states(tokens, before, W, cu_seqlens).transpose(1, 2)
    # Never a view of x: it is a cache that decoding overwrites.
    return y, final.clone(memory_format=torch.contiguous_format)


@torch.no_grad()
def causal_conv1d_update(
    x: Tensor,
    cache: Tensor,
    residual: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    activation: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Causal depthwise convolution of the next token of each stream, for inference: without gradients.

    Args:
        x: [N, D], [N, 1, D] or [1, N, D]; the last two also with [H, K], H * K = D, in place of D.
        cache: [N, D, W], the last W inputs, overwritten in place.
        residual: of the shape of x, added after the activation.
        weight: [D, W]; as in fla it may not be left out.
        bias: [D].
        activation: None, "silu" or "swish" (the same).

    Returns:
        The pair (y, cache): y of the shape and dtype of x.

    Raises:
        TypeError: an argument is not a tensor of the right kind, or on another device than x.
        ValueError: shapes that do not agree, or an unknown activation.
    """
    tokens = x if isinstance(x, Tensor) and x.dim() == 2 else _channels("x", x)
    if tokens.dim() == 3 and 1 not in tokens.shape[:2]:
        raise ValueError(f"x must be [N, D], [N, 1, D] or [1, N, D], one token of each stream; got {list(x.shape)}")
    tokens = tokens.reshape(-1, tokens.shape[-1]) if tokens.dim() == 3 else tokens
    N, D = check("x", tokens, "N D")
    W = check("weight", weight, "D W", x, D=D)[1]
    filters = cast(Tensor, weight)
    check("cache", cache, "N D W", x, N=N, D=D, W=W)
    if residual is not None:
        check("residual", residual, " ".join(map(str, x.shape)), x)
    y = short_conv(tokens[:, None], filters, bias, activation, state=cache.transpose(1, 2)).view(x.shape)
    return (y if residual is None else (y + residual).to(x.dtype)), cache


class ShortConvolution(nn.Conv1d):
    """Depthwise causal convolution with fla's parameters, `weight` [D, 1, W] and `bias`, and its forward pass.

    Args:
        hidden_size: D, channels.
        kernel_size: W, taps.
        bias: add a learned [D] before the activation.
        activation: None, "silu" or "swish" (the same).
        backend: fla's choice of a kernel, "triton" or "cuda": the same here.
        device: of the parameters.
        dtype: of the parameters.
        **kwargs: ignored, as by fla: `use_fast_conv1d` of older versions.

    Raises:
        ValueError: an unknown activation or backend.
    """

    def __init__(
        self,
        hidden_size: int,
        kernel_size: int,
        bias: bool = False,
        activation: str | None = "silu",
        backend: str = "triton",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ):
        super().__init__(
            hidden_size,
            hidden_size,
            kernel_size,
            padding=kernel_size - 1,
            groups=hidden_size,
            bias=bias,
            device=device,
            dtype=dtype,
        )
        if activation not in (None, "silu", "swish"):
            raise ValueError(f'activation must be None, "silu" or "swish"; got {activation!r}')
        _check_backend(backend, _BACKENDS[:2])
        self.hidden_size, self.activation, self.backend = hidden_size, activation, backend

    @property
    def state_size(self) -> int:
        """Numbers in the cache of one stream, D * W."""
        return self.hidden_size * self.kernel_size[0]

    def extra_repr(self) -> str:  # noqa: D102 (that of nn.Conv1d)
        return f"{super().extra_repr()}, activation={self.activation}, backend={self.backend}"

    def forward(  # pyrefly: ignore[bad-override]
        self,
        x: Tensor,
        residual: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Tensor | None = None,
        output_final_state: bool = False,
        cu_seqlens: Tensor | None = None,
        chunk_indices: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Convolve x.

        Args:
            x: [B, T, D] or [B, T, H, K]; not changed by `mask`, which fla does.
            residual: of the shape of x, added after the activation.
            mask: [B, T], 0 at padding, where x counts as 0. Not with `cu_seqlens`.
            cache: [N, D, W], the inputs before x. Overwritten in place where gradients are off and every sequence has
                one token, otherwise not.
            output_final_state: also return the cache after x, which is the given one where that is overwritten.
            cu_seqlens: [N + 1], int32 or int64: the sequences of a packed row (B = 1).
            chunk_indices: ignored.
            **kwargs: `seq_idx`, see :func:`causal_conv1d`; others are ignored.

        Returns:
            The pair (y, cache): y of the shape and dtype of x; cache [N, D, W], None unless asked for.

        Raises:
            TypeError: as :func:`causal_conv1d`.
            ValueError: as :func:`causal_conv1d`, or both `mask` and `cu_seqlens`.
        """
        if mask is not None:
            if cu_seqlens is not None:
                raise ValueError("give either mask or cu_seqlens: packed sequences have no padding")
            x = x * mask[(...,) + (None,) * (x.dim() - 2)].to(x.dtype)
        in_place = cache is not None and not torch.is_grad_enabled() and self._decodes(x, cu_seqlens)
        y, final = causal_conv1d(
            x,
            self.weight[:, 0],
            self.bias,
            residual,
            cache,
            output_final_state or in_place,
            self.activation,
            self.backend,
            cu_seqlens,
            chunk_indices=chunk_indices,
            **kwargs,
        )
        if cache is not None and final is not None and in_place:
            final = cache.copy_(final)
        return y, final if output_final_state else None

    def step(
        self,
        x: Tensor,
        residual: Tensor | None,
        cache: Tensor | None,
        output_final_state: bool = False,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """:meth:`forward` of one token of every stream, without gradients."""
        with torch.no_grad():
            return self(x, residual, None, cache, output_final_state, cu_seqlens)

    @staticmethod
    def _decodes(x: Tensor, cu_seqlens: Tensor | None) -> bool:
        """Whether every sequence has one token."""
        if cu_seqlens is None:
            return x.shape[1] == 1
        return len(cu_seqlens) - 1 == x.shape[1] and bool((cu_seqlens.diff() == 1).all())


def _check_backend(backend: str | None, known: tuple[str | None, ...]) -> None:
    if backend not in known:
        names = ", ".join(repr(name) for name in known)
        raise ValueError(f"backend must be one of {names}; got {backend!r}")


def _channels(name: str, tensor: Tensor) -> Tensor:
    """[B, T, D], where the channels are given as [H, K]."""
    if isinstance(tensor, Tensor) and tensor.dim() == 4:
        check(name, tensor, "B T H K")
        return tensor.flatten(2)
    check(name, tensor, "B T D")
    return tensor
