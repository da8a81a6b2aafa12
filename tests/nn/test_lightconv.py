"""Modules: initialisation, DropConnect, renormalised edges, copies, and errors. Their numbers: kernels/test_golden.py."""

import copy
import pickle

import pytest
import torch

import dynaconv
from dynaconv.nn import DynamicConv, LightConv

MODULES = [LightConv, DynamicConv]


def test_initialisation():
    torch.manual_seed(0)
    light, dynamic = LightConv(512, 31, 16, bias=True), DynamicConv(512, 31, 16, filter_bias=True)
    for weight, bound in ((light.weight, (6 / (31 + 16 * 31)) ** 0.5), (dynamic.filter_proj.weight, 512**-0.5)):
        assert 0.95 * bound < weight.abs().max() <= bound
        assert abs(weight.mean()) < 0.1 * bound
    assert not light.bias.any()
    assert not dynamic.filter_proj.bias.any()


@pytest.mark.parametrize("module", MODULES)
def test_dropconnect_drops_normalised_filters(module):
    torch.manual_seed(0)
    layer = module(8, 3, 2, weight_dropout=0.5)
    x = torch.ones(64, 20, 8)
    plain = layer.eval()(x)
    assert torch.equal(layer(x), plain)
    layer.train()
    samples = torch.stack([layer(x) for _ in range(400)])
    # Every tap is 0 or twice its value: the mean over draws stays, and single draws reach both 0 and more than 1.
    torch.testing.assert_close(samples.mean((0, 1)), plain.mean(0), atol=0.06, rtol=0)
    assert samples[..., -1, :].min() == 0
    assert samples[..., -1, :].max() > 1.2


def test_dropconnect_of_lightconv_is_one_draw_for_all_tokens():
    torch.manual_seed(0)
    x = torch.ones(3, 20, 8)
    light = LightConv(8, 3, 2, weight_dropout=0.5)(x)[:, 2:]
    assert torch.equal(light, light[:1, :1].expand_as(light))
    dynamic = DynamicConv(8, 3, 2, weight_dropout=0.5)(x)[:, 2:]
    assert not torch.equal(dynamic, dynamic[:1, :1].expand_as(dynamic))


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("padding", ["causal", "same", 0])
def test_renormalised_edges_average_what_is_there(module, padding):
    x = torch.ones(2, 6, 8)
    torch.testing.assert_close(module(8, 5, 2, padding=padding, renormalize_edges=True)(x), x)
    assert not torch.allclose(module(8, 5, 2, padding=padding)(x), x)


@pytest.mark.parametrize("module", MODULES)
def test_copies(module):
    layer, x = module(8, 3, 2, bias=True), torch.randn(2, 5, 8)
    expected = layer(x)
    assert torch.equal(copy.deepcopy(layer)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), expected)
    fresh = module(8, 3, 2, bias=True)
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh(x), expected)
    assert "kernel_size=3, heads=2, padding=2" in repr(layer)


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(module, dtype):
    layer = module(8, 3, 2, dtype=dtype)
    assert layer(torch.randn(2, 5, 8, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("module", MODULES)
def test_errors(module):
    with pytest.raises(ValueError, match="dim must be divisible by heads; got dim = 8, heads = 3"):
        module(8, 3, 3)
    with pytest.raises(ValueError, match="kernel_size must be at least 1; got 0"):
        module(8, 0, 2)
    with pytest.raises(ValueError, match=r"weight_dropout must be in \[0, 1\); got 1"):
        module(8, 3, 2, weight_dropout=1)
    with pytest.raises(ValueError, match="renormalize_edges needs normalize"):
        module(8, 3, 2, normalize=None, renormalize_edges=True)


def test_query():
    layer, x = DynamicConv(8, 3, 2, query_dim=5), torch.randn(2, 4, 8)
    with pytest.raises(
        ValueError, match=r"query must be given exactly where the module has a query_dim \(5\); none was given"
    ):
        layer(x)
    with pytest.raises(ValueError, match="one was given"):
        DynamicConv(8, 3, 2)(x, torch.randn(2, 4, 5))
    filters = layer.filter_proj(query := torch.randn(2, 4, 5)).unflatten(-1, (2, 3))
    torch.testing.assert_close(layer(x, query), dynaconv.dynamic_conv(x, filters, normalize="softmax"))
