"""Static filters as the kernels of Triton read them."""

import torch
from torch import Tensor


def expand(filters: Tensor | None, channels: int, dtype: torch.dtype) -> Tensor | None:
    """Filters [H, W] as taps [W, D]: one row of channels for every tap."""
    if filters is None:
        return None
    return filters.detach().to(dtype).T.repeat_interleave(channels // filters.shape[0], dim=1).contiguous()


def collapse(taps: Tensor, like: Tensor) -> Tensor:
    """The transpose of `expand`: gradients of taps [W, D] summed over the channels of each filter, [H, W]."""
    return taps.unflatten(1, (like.shape[0], -1)).sum(2).T.to(like.dtype).contiguous()
