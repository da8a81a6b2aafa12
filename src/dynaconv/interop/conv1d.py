"""Filters of `torch.nn.Conv1d` and its subclasses, such as fla's ShortConvolution and the convolutions of HF Mamba-2.

Their weight is [D, 1, W]; tap order is ours, and `padding` of a module means what it means in
:func:`dynaconv.static_conv`, which always gives T outputs: `padding=W - 1` with a cut behind T is "causal".
"""

from torch import Tensor, nn

from ._arguments import check

__all__ = ["export_filters", "import_filters", "import_module"]


def import_filters(weight: Tensor) -> Tensor:
    """The weight of a depthwise Conv1d, [D, 1, W], as filters [D, W]: a view.

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: not of that shape, as is the weight of a convolution that is not depthwise.
    """
    check("weight", weight, "D 1 W")
    return weight[:, 0]


def export_filters(filters: Tensor) -> Tensor:
    """Filters [D, W] as the weight of a depthwise Conv1d, [D, 1, W]: a view.

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: not of two dimensions.
    """
    check("filters", filters, "D W")
    return filters[:, None]


def import_module(conv: nn.Conv1d) -> tuple[Tensor, Tensor | None]:
    """The filters, [D, W], and the bias, [D] or None, of a depthwise Conv1d; both share memory with its parameters.

    Raises:
        TypeError: not an nn.Conv1d.
        ValueError: not depthwise (groups = in_channels = out_channels), or a stride, dilation or padding mode that
            `static_conv` does not have.
    """
    if not isinstance(conv, nn.Conv1d):
        raise TypeError(f"conv must be an nn.Conv1d; got {type(conv).__name__}")
    channels = conv.in_channels
    needed = {"out_channels": channels, "groups": channels, "stride": (1,), "dilation": (1,), "padding_mode": "zeros"}
    for name, value in needed.items():
        if getattr(conv, name) != value:
            raise ValueError(
                f"conv must have {name} = {value} with in_channels = {channels}; got {getattr(conv, name)}"
            )
    return import_filters(conv.weight), conv.bias
