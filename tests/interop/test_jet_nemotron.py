"""Jet-Nemotron's dynamic convolution against a plain statement of its formula."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dynaconv
from dynaconv.interop import jet_nemotron

from .definitions import B, D, T, W, assert_same, randn

C, R = 5, 3


class Module(nn.Module):
    """A filter for every token and channel from an MLP of two layers, W products, and SiLU."""

    def __init__(self, inputs):
        super().__init__()
        self.kernel_generator = nn.Sequential()
        self.kernel_generator.add_module("w1", nn.Linear(inputs, R, bias=False))
        self.kernel_generator.add_module("act", nn.SiLU())
        self.kernel_generator.add_module("w2", nn.Linear(R, D * W))

    def forward(self, x, generator_input=None):
        filters = self.kernel_generator(x if generator_input is None else generator_input).unflatten(-1, (D, W))
        windows = F.pad(x, (0, 0, W - 1, 0)).unfold(1, W, 1)
        return F.silu((windows * filters).sum(-1))


@pytest.mark.parametrize("as_state_dict", [False, True])
def test_module(backend, as_state_dict):
    module = Module(C)
    source = dict(module.state_dict(keep_vars=True)) if as_state_dict else module
    assert_same(
        lambda x, g, *_: jet_nemotron.dynamic_short_convolution(source, x, g),
        lambda x, g, *_: module(x, g),
        randn(B, T, D),
        randn(B, T, C),
        *module.parameters(),
    )


def test_double_precision():
    module, x = Module(D).double(), torch.randn(B, T, D, dtype=torch.float64)
    torch.testing.assert_close(jet_nemotron.dynamic_short_convolution(module, x), module(x), rtol=1e-13, atol=1e-14)


def test_it_is_lowrank_conv():
    module, x = Module(D), torch.randn(B, T, D)
    w1, w2 = module.kernel_generator.w1, module.kernel_generator.w2
    basis, static = jet_nemotron.import_basis(w2.weight, D), jet_nemotron.import_static(w2.bias, D)
    y = dynaconv.lowrank_conv(x, F.silu(w1(x)), basis, static=static, activation="silu")
    torch.testing.assert_close(y, module(x), rtol=1e-4, atol=1e-5)
    flipped = dynaconv.lowrank_conv(x, F.silu(w1(x)), basis.flip(-1), static=static.flip(-1), activation="silu")
    assert not torch.allclose(flipped, module(x), atol=0.01)


def test_streams(backend):
    module, x, state = Module(D), torch.randn(B, T, D), torch.zeros(B, W - 1, D)
    with torch.no_grad():
        parts = x.split([4, 1, 4], 1)
        pieces = [jet_nemotron.dynamic_short_convolution(module, part, state=state) for part in parts]
        torch.testing.assert_close(torch.cat(pieces, 1), module(x), rtol=1e-4, atol=1e-5)


def test_there_and_back():
    weight, bias = torch.randn(D * W, R), torch.randn(D * W)
    assert torch.equal(jet_nemotron.export_basis(jet_nemotron.import_basis(weight, D)), weight)
    assert torch.equal(jet_nemotron.export_static(jet_nemotron.import_static(bias, D)), bias)


def test_misuse():
    x, parameters = torch.randn(B, T, D), dict(Module(D).state_dict())
    with pytest.raises(ValueError, match="weight must be"):
        jet_nemotron.import_basis(torch.randn(7, R), D)
    with pytest.raises(ValueError, match="bias must be"):
        jet_nemotron.import_static(torch.randn(7), D)
    with pytest.raises(ValueError, match=r"parameters must have kernel_generator\.w2\.bias; got"):
        jet_nemotron.dynamic_short_convolution({k: v for k, v in parameters.items() if "bias" not in k}, x)
    with pytest.raises(ValueError, match=r"generator_input must be \[B = 2, T = 9, C\]; got"):
        jet_nemotron.dynamic_short_convolution(parameters, x, x[:, 1:])
