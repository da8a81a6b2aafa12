"""Short convolutions: a few taps, static or dynamic.

Source: *Dynamic Short Convolutions Improve Transformers* (Sieberling et al., 2026).

Dims: B batch, T tokens, D channels, W taps, R rank, H heads of D // H channels, C channels of the condition.
"""

import math
from collections.abc import Collection
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..functional import dynamic_conv, left_padding, lowrank_conv, static_conv

Init = Literal["paper", "identity"]
Kind = Literal["lowrank", "headwise", "static"]
Padding = Literal["causal", "same"]
KINDS: tuple[str, ...] = get_args(Kind)


def check_placement(placement: Any, others: Collection[str], alphabets: Collection[str] = ("qkv",)) -> None:
    """Raise ValueError unless a placement of convolutions is letters of one alphabet, each once, or another name."""
    letters = isinstance(placement, str) and any(
        len(set(placement) & set(alphabet)) == len(placement) > 0 for alphabet in alphabets
    )
    if placement not in others and not letters:
        of, names = (" or ".join(f'"{word}"' for word in words) for words in (alphabets, others))
        raise ValueError(f"placement must be letters of {of}, each once, or {names}; got {placement!r}")


class _ShortConvolution(nn.Module):
    """What the two modules share: sizes, static filters, what follows the sum, and the initialisation of these."""

    def __init__(
        self,
        dim: int,
        width: int,
        *,
        static: bool,
        bias: bool,
        activation: Literal["silu"] | None,
        residual: bool,
        output_scale: float,
        padding: Padding,
        init: Init,
        **factory: Any,
    ):
        super().__init__()
        if dim < 1 or width < 1:
            raise ValueError(f"dim and width must be at least 1; got dim = {dim}, width = {width}")
        if init not in ("paper", "identity"):
            raise ValueError(f'init must be "paper" or "identity"; got {init!r}')
        if init == "identity" and (activation is not None or output_scale != 1 or not (static or residual)):
            raise ValueError(
                'init="identity" needs activation=None, output_scale=1 and static filters or the residual; got '
                f"activation={activation!r}, output_scale={output_scale}, static={static}, residual={residual}"
            )
        left_padding(padding, width)  # raises ValueError where there is no such padding
        self.dim, self.width, self.padding, self.init = dim, width, padding, init
        self.activation: Literal["silu"] | None = activation
        self.residual, self.output_scale = residual, output_scale
        self.bias = nn.Parameter(torch.empty(dim, **factory)) if bias else None

    def _reset(self, static: Tensor | None) -> None:
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        if static is None:
            return
        if self.init == "paper":
            nn.init.uniform_(static, -1 / math.sqrt(self.width), 1 / math.sqrt(self.width))
            return
        nn.init.zeros_(static)
        if not self.residual:
            nn.init.ones_(static[:, left_padding(self.padding, self.width)])

    def new_state(self, rows: int, spare: int = 0) -> Tensor:
        """A buffer of zeros for `state`: [rows, W - 1 + spare, D], from which `spare` tokens can be taken back."""
        like = next(self.parameters())
        return like.new_zeros(rows, self.width - 1 + spare, self.dim)

    def extra_repr(self) -> str:
        shown = {"width": self.width, "padding": self.padding, "residual": self.residual, "activation": self.activation}
        return ", ".join([str(self.dim), *(f"{name}={value}" for name, value in shown.items())])

    def _keywords(self, x: Tensor, keywords: dict[str, Any]) -> dict[str, Any]:
        if x.dim() != 3 or x.shape[2] != self.dim:
            raise ValueError(f"x must be [B, T, dim] with dim = {self.dim}; got {list(x.shape)}")
        return {
            "padding": self.padding,
            "bias": self.bias,
            "activation": self.activation,
            "residual": self.residual,
            "output_scale": self.output_scale,
            **keywords,
        }


class FilterProjection(nn.Linear):
    """What dynamic filters are made by: a matrix to the codes of low-rank filters, or to head-wise filters."""

    def __init__(self, in_features: int, out_features: int, codes: bool, **factory: Any):
        self.codes = codes
        super().__init__(in_features, out_features, bias=False, **factory)

    def reset_parameters(self) -> None:
        """Codes to U(-1/sqrt(fan_in), 1/sqrt(fan_in)), beside a basis that is 0 at first; filters to 0."""
        bound = 1 / math.sqrt(self.in_features) if self.codes else 0.0
        nn.init.uniform_(self.weight, -bound, bound)


class ShortConv(_ShortConvolution):
    """Static short convolution: depthwise and causal, one filter for each channel.

    y[b, t, d] = output_scale * (activation(sum_w static[d, w] * x[b, t + w - (W - 1), d] + bias[d]) + x[b, t, d])

    with the last x only where `residual`. Mamba-2 and Gated DeltaNet have activation="silu" and no residual, Mamba-2 a
    bias; Canon layers and the static baseline of Sieberling et al. 2026 have the residual and no activation.

    Args:
        dim: D, channels.
        width: W, taps.
        bias: add a learned [D] before the activation.
        activation: None or "silu".
        residual: add x.
        output_scale: factor of the whole.
        padding: "causal", or "same" in encoders, whose tokens see what follows them.
        init: "paper", static filters from U(-1/sqrt(W), 1/sqrt(W)), or "identity": y = x to the bit.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: sizes or options that do not fit, named with their values.
    """

    def __init__(
        self,
        dim: int,
        width: int = 4,
        *,
        bias: bool = False,
        activation: Literal["silu"] | None = None,
        residual: bool = True,
        output_scale: float = 1.0,
        padding: Padding = "causal",
        init: Init = "paper",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(
            dim,
            width,
            static=True,
            bias=bias,
            activation=activation,
            residual=residual,
            output_scale=output_scale,
            padding=padding,
            init=init,
            device=device,
            dtype=dtype,
        )
        self.static = nn.Parameter(torch.empty(dim, width, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Static filters to U(-1/sqrt(W), 1/sqrt(W)); the identity to 0 beside a residual, else to (0, ..., 0, 1)."""
        self._reset(self.static)

    def forward(self, x: Tensor, **keywords: Any) -> Tensor | tuple[Tensor, Tensor]:
        """Convolve x.

        Args:
            x: [B, T, D].
            **keywords: `cu_seqlens`, `initial_state`, `return_final_state`, `state` and `state_indices`, see
                :mod:`dynaconv.functional`.

        Returns:
            [B, T, D], or with `return_final_state` the pair (y, [N, W-1, D]).

        Raises:
            ValueError: x is not [B, T, dim].
        """
        return static_conv(x, self.static, **self._keywords(x, keywords))

    def filters(self, x: Tensor) -> Tensor:
        """The filters of every token, [B, T, D, W], without the residual; to look at: nothing computes by them."""
        return self.static.expand(*x.shape[:2], -1, -1)


class DynamicShortConv(_ShortConvolution):
    """Dynamic short convolution: causal, with filters that are an affine function of each token.

    Low rank: filters[b, t, d, w] = sum_r projection(condition[b, t])[r] * basis[d, r, w] + static[d, w]
    Head-wise: filters[b, t, d, w] = projection(condition[b, t])[d // head_dim, w] + static[d, w]

    y is as for :class:`ShortConv` with these filters.

    Args:
        dim: D, channels.
        width: W, taps; 3 or 4 is what the paper recommends.
        rank: R of the low-rank form; the default is 16 where `head_dim` is not given.
        head_dim: channels that share a filter, in the head-wise form; divides D.
        condition_dim: size of a separate input that the filters are made from; None: they are made from x.
        projection: False leaves the projection out: `condition` is then the codes [B, T, R] themselves, or in the
            head-wise form the filters [B, T, D // head_dim * W]. :class:`ShortConvGroup` does so to project once for
            several convolutions.
        static: add a learned static filter for each channel.
        bias: add a learned [D] before the activation.
        activation: None or "silu".
        residual: add x.
        output_scale: factor of the whole.
        padding: "causal", or "same" in encoders, whose tokens see what follows them.
        init: "paper", the dynamic part 0 at first and static filters from U(-1/sqrt(W), 1/sqrt(W)), or "identity":
            y = x to the bit at first. What makes the dynamic part 0 is the basis, or in the head-wise form the
            projection; both have gradients from the first step on.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: sizes or options that do not fit, named with their values.
    """

    def __init__(
        self,
        dim: int,
        width: int = 4,
        *,
        rank: int | None = None,
        head_dim: int | None = None,
        condition_dim: int | None = None,
        projection: bool = True,
        static: bool = True,
        bias: bool = False,
        activation: Literal["silu"] | None = None,
        residual: bool = True,
        output_scale: float = 1.0,
        padding: Padding = "causal",
        init: Init = "paper",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(
            dim,
            width,
            static=static,
            bias=bias,
            activation=activation,
            residual=residual,
            output_scale=output_scale,
            padding=padding,
            init=init,
            **factory,
        )
        if rank is not None and head_dim is not None:
            raise ValueError(f"give either rank or head_dim; got rank = {rank}, head_dim = {head_dim}")
        if condition_dim is not None and not projection:
            raise ValueError(f"condition_dim has no meaning without a projection; got {condition_dim}")
        self.condition_dim, self.head_dim, self.rank = condition_dim, head_dim, 16 if rank is None else rank
        self.static = nn.Parameter(torch.empty(dim, width, **factory)) if static else None
        self.basis: nn.Parameter | None = None
        if head_dim is None:
            if self.rank < 1:
                raise ValueError(f"rank must be at least 1; got {rank}")
            self.filter_size = self.rank
            # Channels first: shards of the first dimension are of equal size.
            self.basis = nn.Parameter(torch.empty(dim, self.rank, width, **factory))
        else:
            if head_dim < 1 or dim % head_dim:
                raise ValueError(f"dim must be divisible by head_dim; got dim = {dim}, head_dim = {head_dim}")
            self.filter_size = dim // head_dim * width
        source = dim if condition_dim is None else condition_dim
        self.projection = (
            FilterProjection(source, self.filter_size, self.basis is not None, **factory) if projection else None
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As `init` says."""
        self._reset(self.static)
        if self.basis is not None:
            nn.init.zeros_(self.basis)
        if self.projection is not None:
            self.projection.reset_parameters()

    def forward(self, x: Tensor, condition: Tensor | None = None, **keywords: Any) -> Tensor | tuple[Tensor, Tensor]:
        """Convolve x with filters made from `condition`.

        Args:
            x: [B, T, D].
            condition: [B, T, condition_dim] where the module has a `condition_dim`, [B, T, filter_size] where it has no
                projection, else None.
            **keywords: `cu_seqlens`, `initial_state`, `return_final_state`, `state` and `state_indices`, see
                :mod:`dynaconv.functional`.

        Returns:
            [B, T, D], or with `return_final_state` the pair (y, [N, W-1, D]).

        Raises:
            ValueError: x is not [B, T, dim], or `condition` is given where the filters are made from x, or missing
                where they are not.
        """
        if (condition is None) != (self.condition_dim is None and self.projection is not None):
            if condition is not None:
                raise ValueError(
                    f"condition must be left out: the filters are made from x; got {list(condition.shape)}"
                )
            size = self.condition_dim or self.filter_size
            raise ValueError(f"condition must be [B, T, C] with C = {size}; got none")
        keywords = self._keywords(x, keywords) | {"static": self.static}
        source = x if condition is None else condition
        codes = source if self.projection is None else self.projection(source)
        if self.basis is not None:
            return lowrank_conv(x, codes, self.basis.transpose(0, 1), **keywords)
        return dynamic_conv(x, codes.unflatten(-1, (-1, self.width)), **keywords)

    def filters(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """The filters of every token, [B, T, D, W], without the residual; to look at: nothing computes by them."""
        source = x if condition is None else condition
        codes = source if self.projection is None else self.projection(source)
        if self.basis is not None:
            made = torch.einsum("btr,drw->btdw", codes, self.basis)
        else:
            made = codes.unflatten(-1, (-1, self.width)).repeat_interleave(self.head_dim or 1, 2)
        return made if self.static is None else made + self.static

    def extra_repr(self) -> str:
        """The sizes and options, for `print`."""
        kind = f"rank={self.rank}" if self.head_dim is None else f"head_dim={self.head_dim}"
        made = "" if self.condition_dim is None else f", condition_dim={self.condition_dim}"
        return f"{super().extra_repr()}, {kind}, static={self.static is not None}{made}"
