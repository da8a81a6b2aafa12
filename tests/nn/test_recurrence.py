"""Both mixers, with every convolution: decoding, padding, packed sequences, training, errors."""

import pytest
import torch

from dynaconv.nn import GatedDeltaNet, Mamba2, Stream, StreamStates, gated_delta_rule, state_space_scan

MIXERS = {
    "mamba2": (Mamba2, {"num_heads": 4, "head_dim": 6, "state_size": 4, "n_groups": 2}),
    "gated deltanet": (
        GatedDeltaNet,
        {"num_key_heads": 2, "num_value_heads": 4, "key_head_dim": 4, "value_head_dim": 6},
    ),
}
CONVS = ["none", "static", "headwise", "lowrank"]
pytestmark = [pytest.mark.parametrize("kind", MIXERS)]


def build(kind, conv="static", **options):
    """A mixer whose convolution has random filters and, where it has one, a random bias."""
    torch.manual_seed(0)
    cls, sizes = MIXERS[kind]
    module = cls(12, **sizes, conv=conv, rank=3, conv_head_dim=4, chunk_size=4, **options)
    for parameter in module.conv.parameters() if module.conv is not None else ():
        torch.nn.init.normal_(parameter, std=0.5)
    return module


def decode(module, x, lengths, states):
    return torch.cat([module(piece, Stream(states=states)) for piece in x.split(lengths, 1)], 1)


@pytest.mark.parametrize("lengths", [[1] * 13, [2] * 6 + [1], [5, 5, 3], [7, 1, 5], [0, 13]], ids=str)
@pytest.mark.parametrize("conv", CONVS)
def test_decoding_equals_the_whole(kind, conv, lengths):
    module, x, states = build(kind, conv), torch.randn(2, 13, 12), StreamStates()
    whole = module(x)
    with torch.no_grad():
        y = decode(module, x, lengths, states)
        torch.testing.assert_close(y, whole, rtol=1e-5, atol=1e-5)
        address = states.recurrent["state"].data_ptr()
        states.clear()
        torch.testing.assert_close(decode(module, x, lengths, states), whole, rtol=1e-5, atol=1e-5)
    assert states.recurrent["state"].data_ptr() == address


def test_decoding_carries_gradients(kind):
    module, x = build(kind, "lowrank"), torch.randn(2, 9, 12)
    results = module(x), decode(module, x, [4, 1, 4], StreamStates())
    gradients = [torch.autograd.grad(y.square().sum(), list(module.parameters())) for y in results]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_lost_state_is_noticed(kind):
    module, x, states = build(kind), torch.randn(2, 13, 12), StreamStates()
    start = module(x[:, :8], Stream(states=states))
    assert torch.equal(start, module(x[:, :8]))
    states.recurrent.clear()
    assert (module(x[:, 8:], Stream(states=states)) - module(x)[:, 8:]).abs().max() > 1e-3


@pytest.mark.parametrize("conv", CONVS)
@torch.no_grad()
def test_left_padding_changes_nothing(kind, conv):
    module, x, mask = build(kind, conv), torch.randn(2, 11, 12), torch.ones(2, 11)
    mask[0, :5] = 0
    y = module(x, Stream(mask))
    torch.testing.assert_close(y[:1, 5:], module(x[:1, 5:]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(y[1:], module(x[1:]), rtol=1e-5, atol=1e-5)
    states = StreamStates()
    module(x[:, :7], Stream(mask[:, :7], states=states))
    torch.testing.assert_close(module(x[:, 7:], Stream(states=states)), y[:, 7:], rtol=1e-5, atol=1e-5)
    assert (module(x) - y)[0, 5:].abs().max() > 1e-3


@pytest.mark.parametrize("conv", CONVS)
def test_what_stands_at_padding_has_no_influence(kind, conv):
    module, x, mask, results = build(kind, conv), torch.randn(2, 11, 12), torch.ones(2, 11), []
    mask[0, :5] = 0
    for value in (0.0, float("nan")):
        y = module(x.masked_fill(mask[..., None] == 0, value), Stream(mask))
        results.append([y, *torch.autograd.grad(y[mask > 0].square().sum(), list(module.parameters()))])
    torch.testing.assert_close(*results, rtol=0, atol=0)


@torch.no_grad()
def test_padding_leaves_states_as_they_are(kind):
    module, x = build(kind), torch.randn(2, 11, 12)
    padded, exact = StreamStates(), StreamStates()
    module(x, Stream(torch.arange(11).expand(2, -1) < 8, states=padded))
    module(x[:, :8], Stream(states=exact))
    torch.testing.assert_close(padded.recurrent, exact.recurrent, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("conv", CONVS)
def test_packed_sequences_equal_each_by_itself(kind, conv):
    module, x = build(kind, conv), torch.randn(2, 12, 12)
    bounds = [0, 3, 4, 12, 12, 21, 24]
    results = [module(x, Stream(cu_seqlens=torch.tensor(bounds))).flatten(0, 1)]
    row = x.flatten(0, 1)[None]
    results.append(torch.cat([module(row[:, start:end])[0] for start, end in zip(bounds, bounds[1:])]))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)
    weight = torch.randn_like(results[0])
    gradients = [torch.autograd.grad((y * weight).sum(), list(module.parameters())) for y in results]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)
    assert (module(x).flatten(0, 1) - results[0]).abs().max() > 1e-3


@pytest.mark.parametrize("conv", ["headwise", "lowrank"])
def test_dynamic_convolutions_learn(kind, conv):
    torch.manual_seed(0)
    cls, sizes = MIXERS[kind]
    module, x, target = cls(12, **sizes, conv=conv, conv_head_dim=4), *torch.randn(2, 4, 10, 12)
    start = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    optimizer, losses = torch.optim.Adam(module.parameters(), lr=1e-2), []
    for _ in range(20):
        losses.append((module(x) - target).square().mean())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]
    assert all((parameter != start[name]).any() for name, parameter in module.named_parameters())


def test_half_precision_and_autocast(kind):
    module, x = build(kind, "lowrank"), torch.randn(2, 9, 12)
    whole = module(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = module(x)
    half = module.bfloat16()(x.bfloat16())
    assert mixed.dtype == half.dtype == torch.bfloat16
    torch.testing.assert_close(mixed.float(), whole, rtol=0.05, atol=0.05)
    torch.testing.assert_close(half.float(), whole, rtol=0.1, atol=0.1)


def test_errors_name_the_argument(kind):
    cls, sizes = MIXERS[kind]
    heads, divisor = ("num_heads", "n_groups") if cls is Mamba2 else ("num_value_heads", "num_key_heads")
    with pytest.raises(ValueError, match=f"{heads} must be a positive multiple of {divisor}; got {heads} = 3, .* = 2"):
        cls(12, **{**sizes, heads: 3})
    with pytest.raises(ValueError, match="conv must be one of none, static, headwise, lowrank; got 'dynamic'"):
        cls(12, **sizes, conv="dynamic")
    with pytest.raises(ValueError, match="chunk_size must be at least 1; got 0"):
        cls(12, **sizes, chunk_size=0)
    with pytest.raises(ValueError, match="conv_head_dim"):
        cls(12, **sizes, conv="headwise", conv_head_dim=7)


def test_errors_of_the_functions(kind):
    rule = kind == "gated deltanet"
    function = gated_delta_rule if rule else state_space_scan
    wide, narrow, scalars = torch.ones(1, 5, 3, 2), torch.ones(1, 5, 2, 2), torch.ones(1, 5, 3)
    name, other = ("heads of v", "heads of k") if rule else ("heads of x", "groups of b")
    with pytest.raises(ValueError, match=f"{name} must be a positive multiple of {other}; got {name} = 3, {other} = 2"):
        function(
            *((narrow, narrow, wide, scalars, scalars) if rule else (wide, scalars, scalars[0, 0], narrow, narrow))
        )
    tensors = (wide, wide, wide, scalars, scalars) if rule else (wide, scalars, scalars[0, 0], wide, wide)
    with pytest.raises(ValueError, match="chunk_size must be at least 1; got 0"):
        function(*tensors, chunk_size=0)
    with pytest.raises(ValueError, match="give either initial_state or cu_seqlens; got both"):
        function(*tensors, initial_state=torch.ones(1, 3, 2, 2), cu_seqlens=torch.tensor([0, 5]))
