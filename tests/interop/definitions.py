"""What the tests of the peers share: sizes, the peers' definitions in plain PyTorch, and how results are compared."""

import torch
import torch.nn.functional as F
from torch import Tensor

B, T, D, W = 2, 9, 6, 4


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, requires_grad=True)


def assert_same(function, oracle, *inputs: Tensor) -> None:
    """Equal outputs and equal gradients of all outputs; neither changes an input."""
    before = [x.detach().clone() for x in inputs]
    results = []
    for f in (function, oracle):
        outputs = f(*inputs)
        outputs = [y for y in (outputs if isinstance(outputs, tuple) else (outputs,)) if y is not None]
        weights = [torch.linspace(-1, 1, y.numel()).view(y.shape) for y in outputs]
        loss = sum((y * w).sum() for y, w in zip(outputs, weights, strict=True))
        results.append([*outputs, *torch.autograd.grad(loss, inputs)])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(x, b) for x, b in zip(inputs, before, strict=True))


def conv(x: Tensor, weight: Tensor, bias=None, past=None, activation=None) -> Tensor:
    """causal-conv1d's definition: PyTorch's convolution of [B, D, T] behind W - 1 inputs."""
    past = x.new_zeros(*x.shape[:2], weight.shape[1] - 1) if past is None else past
    y = F.conv1d(torch.cat([past, x], 2), weight[:, None], bias, groups=len(weight))
    return y if activation is None else F.silu(y)


def last(x: Tensor, size: int, past=None) -> Tensor:
    """The last `size` inputs of [B, D, T], after `past` or zeros."""
    before = x.new_zeros(*x.shape[:2], size) if past is None else past
    whole = torch.cat([before, x], 2)
    return whole[..., whole.shape[2] - size :]
