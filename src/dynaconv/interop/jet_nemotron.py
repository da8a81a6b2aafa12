"""The dynamic short convolution of Jet-Nemotron (NVlabs, `DynamicShortConvolution`): low-rank filters from a small MLP.

    f[b, t] = w2(silu(w1(g[b, t])))           [D * W] numbers, channel after channel, with g the generator's input
    y[b, t, d] = silu(sum_w f[b, t, d, w] * x[b, t + w - (W - 1), d])

Tap order is ours. It is `lowrank_conv(x, silu(w1 g), basis, static=bias of w2, activation="silu")`: the codes are the
hidden layer, and R is its size. The weights in a state dict:

    kernel_generator.w1.weight   [R, C]      the projection to the codes, as it is
    kernel_generator.w2.weight   [D * W, R]  the basis, [R, D, W], by :func:`import_basis`
    kernel_generator.w2.bias     [D * W]     the static filters, [D, W], by :func:`import_static`

Its cache, [N, D, W], is that of fla: see :func:`dynaconv.interop.fla.import_state`.
"""

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..functional import lowrank_conv
from ._arguments import check, parameters_of

__all__ = ["dynamic_short_convolution", "export_basis", "export_static", "import_basis", "import_static"]

_W1, _W2, _BIAS = (f"kernel_generator.{name}" for name in ("w1.weight", "w2.weight", "w2.bias"))


def import_basis(weight: Tensor, dim: int) -> Tensor:
    """The weight of `w2`, [D * W, R], as our basis, [R, D, W]: a view.

    Args:
        weight: [D * W, R].
        dim: D, channels.

    Raises:
        TypeError: `weight` is not a floating-point tensor.
        ValueError: `weight` is not of two dimensions, or its first is not a multiple of `dim`.
    """
    rows = check("weight", weight, "D*W R")[0]
    if dim < 1 or rows % dim:
        raise ValueError(f"weight must be [D * W, R] with D = {dim}; got {list(weight.shape)}")
    return weight.unflatten(0, (dim, rows // dim)).permute(2, 0, 1)


def export_basis(basis: Tensor) -> Tensor:
    """Our basis, [R, D, W], as the weight of `w2`, [D * W, R].

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: not of three dimensions.
    """
    check("basis", basis, "R D W")
    return basis.permute(1, 2, 0).flatten(0, 1)


def import_static(bias: Tensor, dim: int) -> Tensor:
    """The bias of `w2`, [D * W], as our static filters, [D, W]: a view.

    Raises:
        TypeError: `bias` is not a floating-point tensor.
        ValueError: `bias` is not of one dimension, or that is not a multiple of `dim`.
    """
    if check("bias", bias, "D*W")[0] % max(1, dim) or dim < 1:
        raise ValueError(f"bias must be [D * W] with D = {dim}; got {list(bias.shape)}")
    return bias.unflatten(0, (dim, -1))


def export_static(static: Tensor) -> Tensor:
    """Our static filters, [D, W], as the bias of `w2`, [D * W].

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: not of two dimensions.
    """
    check("static", static, "D W")
    return static.flatten()


def dynamic_short_convolution(
    parameters: nn.Module | Mapping[str, Tensor], x: Tensor, generator_input: Tensor | None = None, **keywords: Any
) -> Tensor | tuple[Tensor, Tensor]:
    """What a `DynamicShortConvolution` with its default activations computes, from its parameters.

    Gradients flow into both inputs and the parameters. There is no `mask`: zero the padding tokens of x instead.

    Args:
        parameters: the module, or its state dict, see above.
        x: [B, T, D], what is convolved.
        generator_input: [B, T, C], what the filters are predicted from; None: x.
        **keywords: those of :func:`dynaconv.lowrank_conv`; `activation` is "silu" unless given. States in place of
            `cache`.

    Returns:
        [B, T, D] in the dtype of x; with `return_final_state` the pair of that and the state.

    Raises:
        TypeError: an argument is not a floating-point tensor, or on another device than x.
        ValueError: shapes that do not agree, or a parameter is missing.
    """
    parameters = parameters_of(parameters, (_W1, _W2, _BIAS))
    B, T, D = check("x", x, "B T D")
    source = x if generator_input is None else generator_input
    C = check("generator_input", source, "B T C", x, B=B, T=T)[2]
    R = check(_W1, parameters[_W1], "R C", x, C=C)[0]
    rows = check(_W2, parameters[_W2], "D*W R", x, R=R)[0]
    check(_BIAS, parameters[_BIAS], "D*W", x, **{"D*W": rows})
    codes = F.silu(F.linear(source, parameters[_W1]))
    static = import_static(parameters[_BIAS], D)
    keywords = {"activation": "silu", "static": static, **keywords}
    return lowrank_conv(x, codes, import_basis(parameters[_W2], D), **keywords)
