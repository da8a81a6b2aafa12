"""Short convolutions by the name of their kind, one or several that share what their filters are made from.

Dims: B batch, T tokens, D channels, W taps, R rank, C channels of the condition.
"""

from typing import Any

from torch import Tensor, nn

from .shortconv import KINDS, DynamicShortConv, FilterProjection, Kind, ShortConv
from .stream import Stream


def short_conv(
    dim: int,
    kind: Kind,
    *,
    width: int = 4,
    rank: int = 16,
    head_dim: int = 16,
    condition_dim: int | None = None,
    projection: bool = True,
    **options: Any,
) -> ShortConv | DynamicShortConv:
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
        self,
        dims: dict[str, int],
        condition_dim: int,
        kind: Kind = "lowrank",
        *,
        width: int = 4,
        rank: int = 16,
        head_dim: int = 16,
        **options: Any,
    ):
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
