"""The filters that the tokens of a text get in a model.

Dims: T tokens, G groups of channels that share a filter, W taps.
"""

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...functional import left_padding
from ...nn import DynamicConv, DynamicShortConv, LightConv, ShortConv

_KINDS = (ShortConv, DynamicShortConv, LightConv, DynamicConv)
_LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class Filters:
    """The filters of one convolution for a text.

    Attributes:
        layer: its number.
        place: where in the layer, such as "q".
        energy: [T, W] mean square over the channels, where there is a residual with it; T is 1 where all tokens have
            the same filters.
        lags: [W] how many tokens back each tap looks; below 0, ahead.
    """

    layer: int
    place: str
    energy: Tensor
    lags: list[int]

    @property
    def shares(self) -> Tensor:
        """[T, W] of the energy of each token."""
        return self.energy / self.energy.sum(1, keepdim=True)


@torch.no_grad()
def find_filters(model: Any, ids: Tensor) -> list[Filters]:
    """The filters of every convolution of a model for a text; of an encoder-decoder those of the encoder.

    Args:
        model: in evaluation mode.
        ids: [1, T].

    Raises:
        ValueError: the model has no convolutions of ours.
    """
    reader: Any = model.get_encoder() if model.config.is_encoder_decoder else model
    found: list[Filters] = []

    def look(name: str) -> Any:
        def hook(module: nn.Module, arguments: tuple) -> None:
            given = [argument for argument in arguments[:2] if argument is not None]
            found.append(_read(name, module, given))

        return hook

    handles = [
        module.register_forward_pre_hook(look(name))
        for name, module in reader.named_modules()
        if isinstance(module, _KINDS)
    ]
    if not handles:
        raise ValueError(f"{type(model).__name__} has no convolutions of dynaconv to look at")
    try:
        reader(ids, **({} if reader is not model else {"use_cache": False}))
    finally:
        for handle in handles:
            handle.remove()
    return sorted(found, key=lambda filters: filters.layer)


def _read(name: str, module: Any, arguments: list[Tensor]) -> Filters:
    filters = module.filters(*arguments)[0].float()
    if isinstance(module, (ShortConv, LightConv)):
        filters = filters[:1]
    left = module.left if isinstance(module, (LightConv, DynamicConv)) else left_padding(module.padding, module.width)
    if getattr(module, "residual", False):
        filters = filters.clone()
        filters[..., left] += 1
    layer = _LAYER.search(f".{name}.")
    place = re.sub(r"(_proj|_convs?|short_convs|convs)\b", "", name[layer.end() - 1 :] if layer else name)
    lags = [left - tap for tap in range(filters.shape[-1])]
    return Filters(
        int(layer[1]) if layer else 0, ".".join(filter(None, place.split("."))), filters.square().mean(1), lags
    )
