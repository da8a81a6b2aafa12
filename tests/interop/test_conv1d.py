"""Filters of nn.Conv1d against the module."""

import pytest
import torch
from torch import nn

import dynaconv
from dynaconv.interop import conv1d

from .definitions import B, D, T, W, assert_same, randn


@pytest.mark.parametrize("bias", [False, True])
def test_module(backend, bias):
    module, x = nn.Conv1d(D, D, W, groups=D, padding=W - 1, bias=bias), randn(B, T, D)

    def ours(x, *_):
        filters, offset = conv1d.import_module(module)
        return dynaconv.static_conv(x, filters, bias=offset)

    assert_same(ours, lambda x, *_: module(x.transpose(1, 2))[..., :T].transpose(1, 2), x, *module.parameters())


def test_same_padding(backend):
    module, x = nn.Conv1d(D, D, 3, groups=D, padding="same", bias=False), torch.randn(B, T, D)
    y = dynaconv.static_conv(x, conv1d.import_module(module)[0], padding="same")
    torch.testing.assert_close(y, module(x.transpose(1, 2)).transpose(1, 2), rtol=1e-4, atol=1e-5)


def test_there_and_back():
    weight = torch.randn(D, 1, W)
    assert torch.equal(conv1d.export_filters(conv1d.import_filters(weight)), weight)
    module = nn.Conv1d(D, D, W, groups=D)
    assert conv1d.import_module(module)[0].data_ptr() == module.weight.data_ptr()


def test_tap_order_matters():
    module, x = nn.Conv1d(D, D, W, groups=D, padding=W - 1, bias=False), torch.randn(B, T, D)
    y = dynaconv.static_conv(x, conv1d.import_module(module)[0].flip(1))
    assert not torch.allclose(y, module(x.transpose(1, 2))[..., :T].transpose(1, 2), atol=0.05)
