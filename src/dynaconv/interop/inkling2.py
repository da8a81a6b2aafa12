"""The dynamic short convolution of Inkling2 in Hugging Face transformers (`Inkling2DynamicShortConvolution`).

    y[b, t, d] = (sum_k (static_weight[k, d] + f[b, t, h, k]) * x[b, t - k, d] + x[b, t, d]) / sqrt(2 W + 1)

with h = d // (D // H) and f[b, t] = weight_proj(dynamic_input[b, t]), of H * W numbers, head after head. Its tap k
looks k tokens back: the reverse of ours. `static_weight` has the layout of dynamic-conv1d, see
:func:`dynaconv.interop.dynamic_conv1d.import_static`. Its static sibling, `Inkling2ShortConvolution`, is `static_conv`
with `residual=True, output_scale=(W + 1) ** -0.5` and the filters of its `conv1d`.
"""

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..functional import dynamic_conv
from ._arguments import check, parameters_of
from .dynamic_conv1d import import_static

__all__ = ["dynamic_short_convolution", "export_projection", "import_projection"]


def import_projection(weight: Tensor, width: int) -> Tensor:
    """The weight of `weight_proj`, [H * W, C], with the taps of every head in our order.

    Args:
        weight: [H * W, C].
        width: W, taps.

    Raises:
        TypeError: `weight` is not a floating-point tensor.
        ValueError: `weight` is not of two dimensions, or its first is not a multiple of `width`.
    """
    rows = check("weight", weight, "H*W C")[0]
    if width < 1 or rows % width:
        raise ValueError(f"weight must be [H * W, C] with W = {width}; got {list(weight.shape)}")
    return weight.unflatten(0, (-1, width)).flip(1).flatten(0, 1)


export_projection = import_projection  # A flip is its own inverse.


def dynamic_short_convolution(
    parameters: nn.Module | Mapping[str, Tensor], hidden_states: Tensor, dynamic_input: Tensor, **keywords: Any
) -> Tensor | tuple[Tensor, Tensor]:
    """What an `Inkling2DynamicShortConvolution` computes, from its parameters.

    Gradients flow into both inputs and the parameters. There is no `conv_mask`: zero the padding tokens of
    `hidden_states` instead, which gives the same outputs at all other tokens.

    Args:
        parameters: the module, or its state dict: `static_weight` [W, D] and `weight_proj.weight` [H * W, C].
        hidden_states: [B, T, D], what is convolved.
        dynamic_input: [B, T, C], what the filters are predicted from.
        **keywords: `initial_state`, `return_final_state`, `state`, `state_indices` and `cu_seqlens` of
            :func:`dynaconv.dynamic_conv`, in place of `past_key_values`.

    Returns:
        [B, T, D] in the dtype of hidden_states; with `return_final_state` the pair of that and the state.

    Raises:
        TypeError: an argument is not a floating-point tensor, or on another device than hidden_states.
        ValueError: shapes that do not agree, or a parameter is missing.
    """
    parameters = parameters_of(parameters, ("static_weight", "weight_proj.weight"))
    static_weight, weight = parameters["static_weight"], parameters["weight_proj.weight"]
    B, T, D = check("hidden_states", hidden_states, "B T D")
    W = check("static_weight", static_weight, "W D", hidden_states, D=D)[0]
    C = check("dynamic_input", dynamic_input, "B T C", hidden_states, B=B, T=T)[2]
    check("weight_proj.weight", weight, "H*W C", hidden_states, C=C)
    # The parameters are flipped rather than the filters of every token.
    filters = F.linear(dynamic_input, import_projection(weight, W)).unflatten(-1, (-1, W))
    return dynamic_conv(
        hidden_states,
        filters,
        static=import_static(static_weight),
        residual=True,
        output_scale=(2 * W + 1) ** -0.5,
        **keywords,
    )
