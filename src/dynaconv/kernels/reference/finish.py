"""What is the same in the definition of every operator: the window of inputs, and what follows the sum."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..options import Options


def padded(x: Tensor, past: Tensor | None, width: int, left: int, dtype: torch.dtype) -> Tensor:
    """The inputs in `dtype` with `past`, or `left` zeros, before them, and zeros behind: [B, T + width - 1, D]."""
    if past is not None:
        return torch.cat([past.to(dtype), x.to(dtype)], dim=1)
    return F.pad(x.to(dtype), (0, 0, left, width - 1 - left))


def finish(total: Tensor, x: Tensor, bias: Tensor | None, options: Options) -> Tensor:
    """scale * (activation(total + bias) + x), in the dtype of x."""
    if bias is not None:
        total = total + bias
    if options.silu:
        total = F.silu(total)
    if options.residual:
        total = total + x
    return (total * options.scale).to(x.dtype)
