"""Modules: initialisation, DropConnect, renormalised edges, sequences, copies, and errors. Their numbers: kernels/test_golden.py."""

import copy
import pickle
import re

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
def test_dropconnect_drops_normalised_filters(module, monkeypatch):
    """Each tap is 0 with probability p, else its softmax over 1 - p: the mean over draws is the plain filter."""
    torch.manual_seed(0)
    layer, x, p, used = module(8, 3, 2, weight_dropout=0.25), torch.randn(8, 20, 8), 0.25, []
    operator = "static_conv" if module is LightConv else "dynamic_conv"
    original = getattr(dynaconv, operator)

    def record(x, filters, *, normalize, **options):
        used.append(filters.softmax(-1) if normalize else filters)
        return original(x, filters, normalize=normalize, **options)

    monkeypatch.setattr(f"dynaconv.nn.lightconv.{operator}", record)
    assert torch.equal(layer.eval()(x), layer(x))
    plain = used[0]
    layer.train()
    for _ in range(40):
        layer(x)
    draws = torch.stack(used[2:])
    kept = draws != 0
    torch.testing.assert_close(draws[kept], (plain / (1 - p)).expand_as(draws)[kept])
    # Four standard deviations of a share of independent draws.
    assert abs(kept.double().mean() - (1 - p)) < 4 * (p * (1 - p) / kept.numel()) ** 0.5


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
    layer = module(8, 3, 2, renormalize_edges=True)
    with pytest.raises(ValueError, match="offset must be the number of tokens before x"):
        layer(torch.randn(1, 4, 8), initial_state=torch.zeros(1, 2, 8))
    with pytest.raises(ValueError, match=re.escape("x must be [B, T, dim] with dim = 8; got [1, 8, 4]")):
        layer(torch.randn(1, 8, 4))


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


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("module", MODULES)
def test_packed_sequences_with_states(module, renormalize):
    """Outputs, states and gradients are those of one sequence after the other, of length 0 and 1 among them."""
    layer, ends = module(8, 4, 2, bias=True, renormalize_edges=renormalize), [0, 3, 3, 4, 9]
    x, past = torch.randn(1, 9, 8, requires_grad=True), torch.randn(4, 3, 8, requires_grad=True)
    offset = torch.tensor([0, 5, 1, 2]) if renormalize else None
    leaves = [x, past, *layer.parameters()]
    packed = layer(x, cu_seqlens=torch.tensor(ends), initial_state=past, return_final_state=True, offset=offset)
    parts = [
        layer(
            x[:, a:b],
            initial_state=past[n : n + 1],
            return_final_state=True,
            offset=int(offset[n]) if renormalize else None,
        )
        for n, (a, b) in enumerate(zip(ends, ends[1:]))
    ]
    alone = torch.cat([y for y, _ in parts], 1), torch.cat([state for _, state in parts])
    grads = [torch.randn_like(t) for t in alone]
    torch.testing.assert_close(packed, alone)
    gradients = [torch.autograd.grad(results, leaves, grads) for results in (packed, alone)]
    torch.testing.assert_close(*gradients)
    assert not torch.allclose(layer(x, offset=0), layer(x, cu_seqlens=torch.tensor(ends)))


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("module", MODULES)
@torch.no_grad()
def test_streams_in_rows_of_a_buffer(module, renormalize):
    layer, x = module(8, 4, 2, bias=True, renormalize_edges=renormalize), torch.randn(3, 6, 8)
    buffer, rows, pieces = torch.zeros(5, 4, 8), torch.tensor([4, -1, 0]), []
    for start, end in ((0, 1), (1, 4), (4, 6)):
        offset = torch.full((3,), start) if renormalize else None
        pieces.append(layer(x[:, start:end], state=buffer, state_indices=rows, offset=offset))
    y = torch.cat(pieces, 1)
    torch.testing.assert_close(y[[0, 2]], layer(x)[[0, 2]])
    assert not y[1].any()
    assert torch.equal(buffer[[4, 0]], x[[0, 2], -4:])
    assert not buffer[1:4].any()


def test_offset():
    layer = LightConv(8, 4, 2, renormalize_edges=True)
    with pytest.raises(ValueError, match=re.escape("offset must be a number or [N] = [2]; got [3]")):
        layer(torch.randn(2, 5, 8), offset=torch.zeros(3))
    with pytest.raises(ValueError, match="cu_seqlens must start at 0"):
        layer(torch.randn(1, 5, 8), cu_seqlens=torch.tensor([0, 3]))
