"""What follows the sum of an operator, and where its window lies: the same for every operator and implementation."""

from typing import NamedTuple

import torch
from torch import Tensor


class Options(NamedTuple):
    """y = scale * (activation(sum + bias) + x), with x only where `residual`.

    Attributes:
        left: padding on the left, 0..W-1: output t is a sum over the inputs t - left ... t - left + W - 1.
        silu: the activation is SiLU, z * sigmoid(z); otherwise the identity.
        residual: add x.
        scale: factor of the whole.
    """

    left: int
    silu: bool
    residual: bool
    scale: float


def compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """fp64 where an input is fp64, else fp32."""
    for tensor in tensors:
        if tensor is not None and tensor.dtype is torch.float64:
            return torch.float64
    return torch.float32
