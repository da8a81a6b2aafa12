"""LightConv and DynamicConv of *Pay Less Attention with Lightweight and Dynamic Convolutions* (Wu et al., ICLR 2019).

Dims: B batch, T tokens, D channels, H heads (D // H consecutive channels share a filter), W taps.
"""

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_cu_seqlens
from ..functional import Padding, dynamic_conv, left_padding, static_conv


class _Convolution(nn.Module):
    """What the two modules share: sizes, padding, DropConnect, edges, and the optional bias."""

    def __init__(
        self,
        dim: int,
        kernel_size: int,
        heads: int,
        *,
        padding: Padding,
        normalize: Literal["softmax"] | None,
        weight_dropout: float,
        renormalize_edges: bool,
        bias: bool,
        **factory: Any,
    ):
        super().__init__()
        if kernel_size < 1:
            raise ValueError(f"kernel_size must be at least 1; got {kernel_size}")
        if heads < 1 or dim % heads:
            raise ValueError(f"dim must be divisible by heads; got dim = {dim}, heads = {heads}")
        if not 0 <= weight_dropout < 1:
            raise ValueError(f"weight_dropout must be in [0, 1); got {weight_dropout}")
        if renormalize_edges and normalize is None:
            raise ValueError('renormalize_edges needs normalize="softmax"; got normalize=None')
        self.dim, self.kernel_size, self.heads = dim, kernel_size, heads
        self.left = left_padding(padding, kernel_size)
        self.normalize: Literal["softmax"] | None = normalize
        self.weight_dropout, self.renormalize_edges = weight_dropout, renormalize_edges
        self.bias = nn.Parameter(torch.zeros(dim, **factory)) if bias else None

    def _check(self, x: Tensor) -> None:
        if x.dim() != 3 or x.shape[-1] != self.dim:
            raise ValueError(f"x must be [B, T, dim] with dim = {self.dim}; got {list(x.shape)}")

    def extra_repr(self) -> str:
        return (
            f"{self.dim}, kernel_size={self.kernel_size}, heads={self.heads}, padding={self.left}, "
            f"normalize={self.normalize}, weight_dropout={self.weight_dropout}"
        )

    def _convolve(
        self, x: Tensor, filters: Tensor, mask_shape: torch.Size, offset: int | Tensor | None, keywords: dict[str, Any]
    ) -> Tensor | tuple[Tensor, Tensor]:
        if self.renormalize_edges:
            continued = any(keywords.get(name) is not None for name in ("initial_state", "state"))
            if continued and offset is None:
                raise ValueError(
                    "offset must be the number of tokens before x where edges are renormalised and a state is given; "
                    "got None"
                )
            filters = self._mask_edges(filters, x, 0 if offset is None else offset, keywords.get("cu_seqlens"))
        normalize = self.normalize
        if self.training and self.weight_dropout > 0:
            if normalize == "softmax":
                filters = filters.softmax(-1, dtype=torch.promote_types(filters.dtype, torch.float32))
                normalize = None
            filters = filters * F.dropout(filters.new_ones(mask_shape), self.weight_dropout)
        conv = static_conv if filters.dim() == 2 else dynamic_conv
        return conv(x, filters, normalize=normalize, padding=self.left, bias=self.bias, **keywords)

    def _normalized(self, filters: Tensor) -> Tensor:
        return filters if self.normalize is None else filters.softmax(-1)

    def _mask_edges(self, filters: Tensor, x: Tensor, offset: int | Tensor, cu_seqlens: Tensor | None) -> Tensor:
        """Filters [B, T, H, W], with minus infinity where a tap falls outside the sequence."""
        token = torch.arange(x.shape[1], device=x.device)
        sequences = len(x)
        own = torch.arange(sequences, device=x.device)[:, None]
        first, end = token.new_zeros(1, 1), token.new_full((1, 1), x.shape[1])
        if cu_seqlens is not None:
            check_cu_seqlens(cu_seqlens, x)
            sequences = len(cu_seqlens) - 1
            own = torch.searchsorted(cu_seqlens[1:].long(), token, right=True).clamp(max=max(0, sequences - 1))[None]
            first, end = cu_seqlens[own], cu_seqlens[own + 1]
        if isinstance(offset, Tensor):
            if offset.shape != (sequences,):
                raise ValueError(f"offset must be a number or [N] = [{sequences}]; got {list(offset.shape)}")
            offset = offset[own]
        position = token[:, None] + torch.arange(self.kernel_size, device=x.device) - self.left
        outside = (position < (first - offset)[..., None]) | (position >= end[..., None])
        return filters.masked_fill(outside[:, :, None], -math.inf)


class LightConv(_Convolution):
    """Lightweight convolution: depthwise, with softmax-normalised filters that groups of channels share.

    y[b, t, d] = sum_w softmax(weight[d // (D // H)])_w * x[b, t + w - P, d]   (Wu et al. 2019, section 3)

    Args:
        dim: D, channels.
        kernel_size: W, taps.
        heads: H, filters; divides D.
        padding: "causal" for decoders, "same" for encoders, or the number of zeros on the left.
        normalize: "softmax" over the taps, or None.
        weight_dropout: DropConnect: each entry of the normalised [H, W] filters is dropped with this probability in
            training, one draw per call for all tokens, and the rest is scaled by 1 / (1 - p).
        renormalize_edges: take the softmax over the taps inside the sequence only. The published models do not.
        bias: add a learned [D] to the output.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: sizes that do not fit, named with their values.
    """

    def __init__(
        self,
        dim: int,
        kernel_size: int,
        heads: int,
        *,
        padding: Padding = "causal",
        normalize: Literal["softmax"] | None = "softmax",
        weight_dropout: float = 0.0,
        renormalize_edges: bool = False,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(
            dim,
            kernel_size,
            heads,
            padding=padding,
            normalize=normalize,
            weight_dropout=weight_dropout,
            renormalize_edges=renormalize_edges,
            bias=bias,
            device=device,
            dtype=dtype,
        )
        self.weight = nn.Parameter(torch.empty(heads, kernel_size, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight to U(-a, a), a = sqrt(6 / (W + H W)): Xavier for the paper's [H, 1, W] tensor; bias to 0."""
        nn.init.xavier_uniform_(self.weight.unsqueeze(1))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(
        self, x: Tensor, *, offset: int | Tensor | None = None, **keywords: Any
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Convolve x.

        Args:
            x: [B, T, D].
            offset: number of tokens before x, for all sequences or [N] of them; needed for `renormalize_edges` with a
                state only.
            **keywords: `cu_seqlens`, `initial_state`, `return_final_state`, `state` and `state_indices`, see
                :mod:`dynaconv.functional`.

        Returns:
            [B, T, D], or with `return_final_state` the pair (y, [N, W-1, D]).

        Raises:
            ValueError: x is not [B, T, dim], or a missing `offset` or one of another shape.
        """
        self._check(x)
        filters = self.weight
        if self.renormalize_edges:
            filters = filters.expand(x.shape[0], x.shape[1], -1, -1)
        return self._convolve(x, filters, self.weight.shape, offset, keywords)

    def filters(self, x: Tensor) -> Tensor:
        """The filters of every token, [B, T, H, W], normalised; to look at: nothing computes by them."""
        return self._normalized(self.weight).expand(*x.shape[:2], -1, -1)


class DynamicConv(_Convolution):
    """Dynamic convolution: a lightweight convolution whose filters are predicted from the current token.

    y[b, t, d] = sum_w softmax(filter_proj(query[b, t])[d // (D // H)])_w * x[b, t + w - P, d]

    (Wu et al. 2019, section 4)

    Args:
        dim: D, channels.
        kernel_size: W, taps.
        heads: H, filters per token; divides D.
        padding: "causal" for decoders, "same" for encoders, or the number of zeros on the left.
        normalize: "softmax" over the taps, or None.
        weight_dropout: DropConnect: each entry of the normalised [B, T, H, W] filters is dropped independently with
            this probability in training, and the rest is scaled by 1 / (1 - p).
        renormalize_edges: take the softmax over the taps inside the sequence only. The published models do not.
        bias: add a learned [D] to the output.
        query_dim: size of a separate input that the filters are predicted from; None: from x.
        filter_bias: bias in `filter_proj`. The published models have none.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: sizes that do not fit, named with their values.
    """

    def __init__(
        self,
        dim: int,
        kernel_size: int,
        heads: int,
        *,
        padding: Padding = "causal",
        normalize: Literal["softmax"] | None = "softmax",
        weight_dropout: float = 0.0,
        renormalize_edges: bool = False,
        bias: bool = False,
        query_dim: int | None = None,
        filter_bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(
            dim,
            kernel_size,
            heads,
            padding=padding,
            normalize=normalize,
            weight_dropout=weight_dropout,
            renormalize_edges=renormalize_edges,
            bias=bias,
            device=device,
            dtype=dtype,
        )
        self.query_dim = query_dim
        self.filter_proj = nn.Linear(
            query_dim or dim, heads * kernel_size, bias=filter_bias, device=device, dtype=dtype
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """`filter_proj` to U(-1/sqrt(fan_in), 1/sqrt(fan_in)), PyTorch's default for a Linear; biases to 0."""
        bound = 1 / math.sqrt(self.filter_proj.in_features)
        nn.init.uniform_(self.filter_proj.weight, -bound, bound)
        for bias in (self.filter_proj.bias, self.bias):
            if bias is not None:
                nn.init.zeros_(bias)

    def forward(
        self, x: Tensor, query: Tensor | None = None, *, offset: int | Tensor | None = None, **keywords: Any
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Convolve x with filters predicted from `query`.

        Args:
            x: [B, T, D].
            query: [B, T, query_dim] where the module has a `query_dim`, else None.
            offset: number of tokens before x, for all sequences or [N] of them; needed for `renormalize_edges` with a
                state only.
            **keywords: `cu_seqlens`, `initial_state`, `return_final_state`, `state` and `state_indices`, see
                :mod:`dynaconv.functional`.

        Returns:
            [B, T, D], or with `return_final_state` the pair (y, [N, W-1, D]).

        Raises:
            ValueError: x is not [B, T, dim], a missing `offset` or one of another shape, or `query` given without
                `query_dim` or missing with it.
        """
        self._check(x)
        if (query is None) != (self.query_dim is None):
            given = "none was given" if query is None else "one was given"
            raise ValueError(
                f"query must be given exactly where the module has a query_dim ({self.query_dim}); {given}"
            )
        filters = self.filter_proj(x if query is None else query).unflatten(-1, (self.heads, self.kernel_size))
        return self._convolve(x, filters, filters.shape, offset, keywords)

    def filters(self, x: Tensor, query: Tensor | None = None) -> Tensor:
        """The filters of every token, [B, T, H, W], normalised; to look at: nothing computes by them."""
        source = x if query is None else query
        return self._normalized(self.filter_proj(source).unflatten(-1, (self.heads, self.kernel_size)))
