"""What people write without this library: the peers that `operators.py` measures beside it. All causal."""

import torch
import torch.nn.functional as F
from torch import Tensor


def shift_and_add(x: Tensor, filters: Tensor) -> Tensor:
    """A loop over taps: [B, T, D] and [B, T, H, W] to [B, T, D]."""
    _, T, D = x.shape
    H, W = filters.shape[2:]
    padded = F.pad(x, (0, 0, W - 1, 0)).unflatten(-1, (H, D // H))
    y = filters[..., 0, None] * padded[:, :T]
    for w in range(1, W):
        y = y + filters[..., w, None] * padded[:, w : w + T]
    return y.flatten(2)


def unfold_einsum(x: Tensor, filters: Tensor) -> Tensor:
    """Sliding windows and one contraction: [B, T, D] and [B, T, H, W] to [B, T, D]."""
    H, W = filters.shape[2:]
    windows = F.pad(x, (0, 0, W - 1, 0)).unflatten(-1, (H, x.shape[2] // H)).unfold(1, W, 1)
    return torch.einsum("bthcw,bthw->bthc", windows, filters).flatten(2)


def depthwise_conv1d(x: Tensor, filters: Tensor) -> Tensor:
    """PyTorch's own depthwise convolution: [B, T, D] and [H, W] to [B, T, D]."""
    D, (H, W) = x.shape[2], filters.shape
    weight = filters.repeat_interleave(D // H, 0).unsqueeze(1)
    return F.conv1d(F.pad(x.transpose(1, 2), (W - 1, 0)), weight, groups=D).transpose(1, 2)
