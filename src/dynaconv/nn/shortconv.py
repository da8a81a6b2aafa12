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
from .stream import Stream

Init = Literal["paper", "identity"]
Kind = Literal["lowrank", "headwise", "static"]
Padding = Literal["causal", "same"]
KINDS: tuple[str, ...] = get_args(Kind)


def check_placement(placement: Any, others: Collection[str]) -> None:
    """Raise ValueError unless a placement of convolutions is letters of "qkv", each once, or one of the other names."""
    letters = isinstance(placement, str) and len(set(placement) & set("qkv")) == len(placement) > 0
    if placement not in others and not letters:
        names = " or ".join(f'"{name}"' for name in others)
        raise ValueError(f'placement must be letters of "qkv", each once, or {names}; got {placement!r}')


class _ShortConvolution(nn.Module):
    """What the two modules share: sizes, static filters, what follows the sum, and the initialisation of these."""

    def __init__(
        self, dim: int, width: int, *, static: bool, bias: bool, activation: Literal["silu"] | None, residual: bool,
        output_scale: float, padding: Padding, init: Init, **factory: Any,
    ):  # fmt: skip
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
            "padding": self.padding, "bias": self.bias, "activation": self.activation, "residual": self.residual,
            "output_scale": self.output_scale, **keywords,
        }  # fmt: skip


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
        self, dim: int, width: int = 4, *, bias: bool = False, activation: Literal["silu"] | None = None,
        residual: bool = True, output_scale: float = 1.0, padding: Padding = "causal", init: Init = "paper",
        device: torch.device | str | None = None, dtype: torch.dtype | None = None,
    ):  # fmt: skip
        super().__init__(
            dim, width, static=True, bias=bias, activation=activation, residual=residual, output_scale=output_scale,
            padding=padding, init=init, device=device, dtype=dtype,
        )  # fmt: skip
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
        self, dim: int, width: int = 4, *, rank: int | None = None, head_dim: int | None = None,
        condition_dim: int | None = None, projection: bool = True, static: bool = True, bias: bool = False,
        activation: Literal["silu"] | None = None, residual: bool = True, output_scale: float = 1.0,
        padding: Padding = "causal", init: Init = "paper", device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):  # fmt: skip
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(
            dim, width, static=static, bias=bias, activation=activation, residual=residual, output_scale=output_scale,
            padding=padding, init=init, **factory,
        )  # fmt: skip
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

    def extra_repr(self) -> str:
        """The sizes and options, for `print`."""
        kind = f"rank={self.rank}" if self.head_dim is None else f"head_dim={self.head_dim}"
        made = "" if self.condition_dim is None else f", condition_dim={self.condition_dim}"
        return f"{super().extra_repr()}, {kind}, static={self.static is not None}{made}"


def short_conv(
    dim: int, kind: Kind, *, width: int = 4, rank: int = 16, head_dim: int = 16, condition_dim: int | None = None,
    projection: bool = True, **options: Any,
) -> ShortConv | DynamicShortConv:  # fmt: skip
    """A short convolution by the name of its kind.

    Args:
        dim: D, channels.
        kind: "lowrank", "headwise" or "static".
        width: W, taps.
        rank: R, of kind "lowrank".
        head_dim: channels that share a filter, of kind "headwise"; divides D.
        condition_dim: see :class:`DynamicShortConv`; not of kind "static".
        projection: the same.
        **options: of the module.

    Raises:
        ValueError: no such kind, or sizes or options that do not fit.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")
    if kind == "static":
        return ShortConv(dim, width, **options)
    options |= {"rank": rank} if kind == "lowrank" else {"head_dim": head_dim}
    return DynamicShortConv(dim, width, condition_dim=condition_dim, projection=projection, **options)


class ShortConvGroup(nn.Module):
    """Short convolutions of several tensors, say queries, keys and values, whose filters are made from one input.

    One projection serves them all: the filters of each are made from codes (or head-wise filters) of its own, and all
    of these come from one matrix multiplication.

    Args:
        dims: D of each convolution, by name.
        condition_dim: C, size of the input that the filters are made from.
        kind: "lowrank", "headwise" or "static".
        width: W, taps.
        rank: R, of kind "lowrank".
        head_dim: channels that share a filter, of kind "headwise"; divides every D.
        **options: `static`, `bias`, `activation`, `residual`, `output_scale`, `padding`, `init`, `device`, `dtype` of
            :class:`DynamicShortConv`; for kind "static" those of :class:`ShortConv`.

    Raises:
        ValueError: sizes or options that do not fit, named with their values.
    """

    def __init__(
        self, dims: dict[str, int], condition_dim: int, kind: Kind = "lowrank", *, width: int = 4, rank: int = 16,
        head_dim: int = 16, **options: Any,
    ):  # fmt: skip
        super().__init__()
        self.condition_dim, self.kind, self.width = condition_dim, kind, width
        options |= {"width": width, "rank": rank, "head_dim": head_dim, "projection": False}
        convs = {name: short_conv(dim, kind, **options) for name, dim in dims.items()}
        self.convs = nn.ModuleDict(convs)
        self.sizes = [conv.filter_size for conv in convs.values() if isinstance(conv, DynamicShortConv)]
        factory = {name: options[name] for name in ("device", "dtype") if name in options}
        self.projection = (
            FilterProjection(condition_dim, sum(self.sizes), kind == "lowrank", **factory) if self.sizes else None
        )

    def conditions(self, source: Tensor) -> dict[str, Tensor]:
        """What `forward` needs of the input [B, T, C], by name; empty for static filters."""
        if self.projection is None:
            return {}
        return dict(zip(self.convs, self.projection(source).split(self.sizes, dim=-1), strict=True))

    def forward(self, tensors: dict[str, Tensor], source: Tensor, stream: Stream | None = None) -> dict[str, Tensor]:
        """Convolve tensors with filters made from `source`.

        Args:
            tensors: [B, T, D] each, by name.
            source: [B, T, C].
            stream: the sequences and what is kept of them between calls; None: every row is one sequence.

        Returns:
            The results, [B, T, D] each, by name.

        Raises:
            ValueError: not exactly the tensors that the group is for, or a source of another size.
        """
        if tensors.keys() != self.convs.keys():
            raise ValueError(f"tensors must be {', '.join(self.convs)}; got {', '.join(tensors)}")
        if source.shape[-1] != self.condition_dim:
            raise ValueError(f"source must be [B, T, C] with C = {self.condition_dim}; got {list(source.shape)}")
        stream, conditions = stream or Stream(), self.conditions(source)
        return {name: stream.convolve(self.convs[name], name, x, conditions.get(name)) for name, x in tensors.items()}

    def extra_repr(self) -> str:
        """The kind, for `print`."""
        return f"condition_dim={self.condition_dim}, kind={self.kind}"
