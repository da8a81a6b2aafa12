"""ShortConv and DynamicShortConv: parameters, initialisation, decoding, errors."""

import math

import pytest
import torch

import dynaconv
from dynaconv.nn import DynamicShortConv, ShortConv, ShortConvGroup

KINDS = {
    "static": lambda **o: ShortConv(12, **o),
    "low rank": lambda **o: DynamicShortConv(12, rank=5, **o),
    "head-wise": lambda **o: DynamicShortConv(12, head_dim=4, **o),
}


def randomized(kind, **options):
    module = KINDS[kind](**options)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module


@pytest.mark.parametrize(
    "options", [{}, {"residual": False}, {"activation": "silu", "bias": True, "output_scale": 0.5}], ids=str
)
@pytest.mark.parametrize("kind", KINDS)
def test_the_formula(kind, options):
    module, x = randomized(kind, **options), torch.randn(2, 9, 12)
    filters = module.static.expand(2, 9, 12, 4)
    if kind == "low rank":
        filters = filters + torch.einsum("btr,drw->btdw", module.projection(x), module.basis)
    if kind == "head-wise":
        filters = filters + module.projection(x).unflatten(-1, (3, 4)).repeat_interleave(4, dim=2)
    windows = torch.nn.functional.pad(x, (0, 0, 3, 0)).unfold(1, 4, 1)
    expected = (filters * windows).sum(-1)
    expected = expected + module.bias if module.bias is not None else expected
    expected = torch.nn.functional.silu(expected) if module.activation else expected
    expected = (expected + x if module.residual else expected) * module.output_scale
    torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_identity_at_first(kind, residual):
    module, x = KINDS[kind](residual=residual, init="identity"), torch.randn(2, 9, 12)
    assert torch.equal(module(x), x)
    assert not torch.equal(KINDS[kind](residual=residual)(x), x)


@pytest.mark.parametrize("init", ["paper", "identity"])
@pytest.mark.parametrize("kind", ["low rank", "head-wise"])
def test_the_dynamic_part_learns_from_the_first_step_on(kind, init):
    module = KINDS[kind](init=init)
    module(torch.randn(2, 9, 12)).square().sum().backward()
    first = module.basis if kind == "low rank" else module.projection.weight
    assert first.eq(0).all()
    assert first.grad.abs().max() > 0.1


def test_static_filters_of_the_paper():
    static = ShortConv(4000, 3).static
    assert static.abs().max() <= 1 / math.sqrt(3)
    assert static.std().item() == pytest.approx(1 / 3, rel=0.03)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_decoding_equals_the_whole(kind):
    module, x = randomized(kind), torch.randn(2, 9, 12)
    whole, state, pieces = module(x), module.new_state(2, spare=2), []
    for start, end in ((0, 4), (4, 5), (5, 9)):
        pieces.append(module(x[:, start:end], state=state))
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-4, atol=1e-4)
    packed = module(x[:1], cu_seqlens=torch.tensor([0, 4, 9]))
    torch.testing.assert_close(packed, torch.cat([module(x[:1, :4]), module(x[:1, 4:])], 1), rtol=1e-4, atol=1e-4)


def test_filters_from_a_condition():
    module = DynamicShortConv(12, rank=2, condition_dim=5, static=False)
    torch.nn.init.normal_(module.basis)
    x, condition = torch.randn(2, 9, 12), torch.randn(2, 9, 5)
    expected = dynaconv.lowrank_conv(x, module.projection(condition), module.basis.transpose(0, 1), residual=True)
    assert torch.equal(module(x, condition), expected)
    with pytest.raises(ValueError, match=r"condition must be \[B, T, C\] with C = 5; got none"):
        module(x)
    with pytest.raises(ValueError, match=r"must be left out: the filters are made from x; got \[2, 9, 5\]"):
        DynamicShortConv(12)(x, condition)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ShortConv(0), "dim and width must be at least 1; got dim = 0, width = 4"),
        (lambda: ShortConv(8, 0), "dim and width must be at least 1; got dim = 8, width = 0"),
        (lambda: ShortConv(8, init="zeros"), 'init must be "paper" or "identity"; got \'zeros\''),
        (lambda: ShortConv(8, init="identity", activation="silu"), 'init="identity" needs activation=None'),
        (lambda: DynamicShortConv(8, rank=0), "rank must be at least 1; got 0"),
        (lambda: DynamicShortConv(8, rank=4, head_dim=2), "give either rank or head_dim; got rank = 4, head_dim = 2"),
        (lambda: DynamicShortConv(8, head_dim=3), "dim must be divisible by head_dim; got dim = 8, head_dim = 3"),
        (lambda: ShortConv(8)(torch.randn(2, 8, 9)), r"x must be \[B, T, dim\] with dim = 8; got \[2, 8, 9\]"),
    ],
)
def test_misuse_is_explained(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_a_group_is_its_convolutions_with_one_projection():
    torch.manual_seed(0)
    dims, tensors = {"q": 12, "k": 8}, {"q": torch.randn(2, 9, 12), "k": torch.randn(2, 9, 8)}
    source = torch.randn(2, 9, 5)
    for kind in ("static", "headwise", "lowrank"):
        group = ShortConvGroup(dims, 5, kind, rank=3, head_dim=4)
        for parameter in group.parameters():
            torch.nn.init.normal_(parameter)
        results, conditions = group(tensors, source), group.conditions(source)
        for name, x in tensors.items():
            condition = () if kind == "static" else (conditions[name],)
            assert torch.equal(results[name], group.convs[name](x, *condition))
    with pytest.raises(ValueError, match="tensors must be q, k; got q"):
        group({"q": tensors["q"]}, source)
    with pytest.raises(ValueError, match=r"source must be \[B, T, C\] with C = 5; got \[2, 9, 8\]"):
        group(tensors, tensors["k"])
    with pytest.raises(ValueError, match="kind must be one of lowrank, headwise, static; got 'x'"):
        ShortConvGroup(dims, 5, "x")
