"""The functions of dynamic-conv1d, the kernels of Sieberling et al. 2026, for every device, dtype, size and rank.

    y[b, t, d] = sum_k (f[b, t, d, k] + static_w[k, d]) * x[b, t - k, d]   (+ x[b, t, d] where `residual`)

Its tap k looks k tokens back, so tap 0 multiplies the current token: the reverse of ours.
"""

from typing import cast

from torch import Tensor

from ..functional import dynamic_conv, lowrank_conv
from ._arguments import check

__all__ = [
    "export_basis",
    "export_filters",
    "export_static",
    "headwise_dynamic_convolution",
    "import_basis",
    "import_filters",
    "import_static",
    "lowrank_dynamic_convolution",
]


def import_filters(filters: Tensor) -> Tensor:
    """Head-wise filters, [B, T, H, W], with the taps in our order.

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: not of four dimensions.
    """
    check("filters", filters, "B T H W")
    return filters.flip(-1)


export_filters = import_filters  # A flip is its own inverse.


def import_static(static_w: Tensor) -> Tensor:
    """Static filters, [W, D], as ours, [D, W].

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: not of two dimensions.
    """
    check("static_w", static_w, "W D")
    return static_w.flip(0).T


def export_static(static: Tensor) -> Tensor:
    """Our static filters, [D, W], as those of the peer, [W, D].

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: not of two dimensions.
    """
    check("static", static, "D W")
    return static.T.flip(0)


def import_basis(U: Tensor, dim: int) -> Tensor:
    """The second projection, [R, W * D] with row r laid out tap after tap, as our basis, [R, D, W].

    Args:
        U: [R, W * D], the peer's `proj_out`.
        dim: D, channels.

    Raises:
        TypeError: U is not a floating-point tensor.
        ValueError: U is not of two dimensions, or its second is not a multiple of `dim`.
    """
    R, columns = check("U", U, "R W*D")
    if dim < 1 or columns % dim:
        raise ValueError(f"U must be [R, W * D] with D = {dim}; got {list(U.shape)}")
    return U.view(R, columns // dim, dim).flip(1).transpose(1, 2)


def export_basis(basis: Tensor) -> Tensor:
    """Our basis, [R, D, W], as the second projection of the peer, [R, W * D].

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: not of three dimensions.
    """
    check("basis", basis, "R D W")
    return basis.transpose(1, 2).flip(1).flatten(1)


def headwise_dynamic_convolution(
    x: Tensor, weight: Tensor, static_w: Tensor | None = None, residual: bool = False
) -> Tensor:
    """Causal convolution with a filter for every token and head; D // H consecutive channels share one.

    The flip of the filters is a copy; code of its own gives :func:`dynaconv.dynamic_conv` filters in our order.

    Args:
        x: [B, T, D], floating point, any strides.
        weight: [B, T, H, W] with H a divisor of D.
        static_w: [W, D], added to the filters of every token.
        residual: add x.

    Returns:
        [B, T, D] in the dtype of x.

    Raises:
        TypeError: an argument is not a floating-point tensor, or on another device than x.
        ValueError: shapes that do not agree.
    """
    B, T, D = check("x", x, "B T D")
    H, W = check("weight", weight, "B T H W", x, B=B, T=T)[2:]
    if H == 0 or D % H:
        raise ValueError(f"weight must be for a number of heads that divides D; got H = {H}, D = {D}")
    static = _static(static_w, x, W)
    return cast(Tensor, dynamic_conv(x, import_filters(weight), static=static, residual=residual))


def lowrank_dynamic_convolution(
    x: Tensor, z: Tensor, U: Tensor, static_w: Tensor | None = None, residual: bool = False
) -> Tensor:
    """Causal convolution with a filter for every token and channel, of low rank: the filters are z @ U.

    Args:
        x: [B, T, D], floating point, any strides.
        z: [B, T, R].
        U: [R, W * D], row r laid out tap after tap.
        static_w: [W, D], added to the filters of every token.
        residual: add x.

    Returns:
        [B, T, D] in the dtype of x.

    Raises:
        TypeError: an argument is not a floating-point tensor, or on another device than x.
        ValueError: shapes that do not agree.
    """
    B, T, D = check("x", x, "B T D")
    R = check("z", z, "B T R", x, B=B, T=T)[2]
    check("U", U, "R W*D", x, R=R)
    basis = import_basis(U, D)
    static = _static(static_w, x, basis.shape[2])
    return cast(Tensor, lowrank_conv(x, z, basis, static=static, residual=residual))


def _static(static_w: Tensor | None, x: Tensor, width: int) -> Tensor | None:
    if static_w is None:
        return None
    check("static_w", static_w, "W D", x, W=width, D=x.shape[2])
    return import_static(static_w)
