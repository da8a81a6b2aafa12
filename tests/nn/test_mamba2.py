"""The scan against a loop over tokens in fp64; Mamba2 against transformers' layer; FLOPs; fla's kernel."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import Mamba2Config
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

from dynaconv.nn import Mamba2, Stream, recurrence, scan_flops, state_space_scan

from .recurrences import check_kernel_of_fla, compare_gradients


def loop(x, dt, a, b, c, initial_state):
    h, outputs, repeats = initial_state, [], x.shape[2] // b.shape[2]
    for t in range(x.shape[1]):
        b_t, c_t = (tensor[:, t].repeat_interleave(repeats, 1) for tensor in (b, c))
        h = (dt[:, t] * a).exp()[..., None, None] * h + b_t[..., None] * (dt[:, t, :, None] * x[:, t])[..., None, :]
        outputs.append((c_t[..., None] * h).sum(-2))
    return torch.stack(outputs, 1) if outputs else torch.zeros_like(x), h


def arguments(B, T, H=4, G=2, P=3, N=5):
    torch.manual_seed(T)
    return {
        "x": torch.randn(B, T, H, P),
        "dt": torch.rand(B, T, H),
        "a": -4 * torch.rand(H),
        "b": torch.randn(B, T, G, N),
        "c": torch.randn(B, T, G, N),
        "initial_state": torch.randn(B, H, N, P),
    }


@pytest.mark.parametrize("chunk_size", [1, 16, 64])
@pytest.mark.parametrize("T", [0, 1, 2, 63, 64, 65, 130])
def test_scan_equals_a_loop_over_tokens(T, chunk_size):
    compare_gradients(lambda **t: state_space_scan(**t, chunk_size=chunk_size), loop, arguments(2, T))


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 3), st.integers(0, 23), st.integers(1, 3), st.integers(1, 3), st.integers(1, 30))
def test_scan_of_any_shape(B, T, G, R, chunk_size):
    tensors = arguments(B, T, H=G * R, G=G, P=1 + T % 3, N=1 + T % 4)
    compare_gradients(lambda **t: state_space_scan(**t, chunk_size=chunk_size), loop, tensors)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 3), st.lists(st.integers(0, 9), max_size=5), st.integers(1, 12))
def test_packed_scan_equals_each_sequence(B, lengths, chunk_size):
    T = sum(lengths)
    tensors, start = {**arguments(B, T), "initial_state": None}, 0
    bounds = torch.tensor([0, *lengths * B]).cumsum(0)
    y, final = state_space_scan(**tensors, cu_seqlens=bounds, chunk_size=chunk_size)
    assert final is None
    for length in lengths:
        piece = {n: t[:, start : start + length] if t is not None and t.dim() > 1 else t for n, t in tensors.items()}
        torch.testing.assert_close(y[:, start : start + length], state_space_scan(**piece)[0], rtol=1e-4, atol=1e-5)
        start += length


def test_scan_stays_exact_where_decay_is_strong():
    tensors = arguments(1, 130) | {"a": torch.full((4,), -300.0)}
    compare_gradients(state_space_scan, loop, tensors, rtol=1e-3, atol=1e-3)


def test_scan_computes_in_fp32():
    tensors = {name: tensor.bfloat16() for name, tensor in arguments(2, 70).items()}
    expected, state = loop(**{name: tensor.double() for name, tensor in tensors.items()})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, final = state_space_scan(**tensors)
    assert (y.dtype, final.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(y, expected.bfloat16(), rtol=1e-2, atol=1e-5)
    torch.testing.assert_close(final, state.float(), rtol=1e-4, atol=1e-4)


def oracle_of(module, groups, bias):
    """transformers' layer with the weights of `module`."""
    config = Mamba2Config(
        hidden_size=12,
        num_heads=4,
        head_dim=6,
        state_size=5,
        n_groups=groups,
        expand=2,
        conv_kernel=4,
        chunk_size=16,
        layer_norm_epsilon=1e-5,
        use_bias=bias,
        num_hidden_layers=1,
    )
    oracle = Mamba2Mixer(config, layer_idx=0)
    with torch.no_grad():
        for target, source in pairs(oracle, module):
            target.copy_(source.view_as(target))
    return oracle


def pairs(oracle, module):
    names = ["in_proj.weight", "out_proj.weight", "A_log", "dt_bias", "D"]
    names += ["in_proj.bias", "out_proj.bias"] if module.in_proj.bias is not None else []
    names = [(name, name) for name in names]
    names += [("conv1d.weight", "conv.static"), ("conv1d.bias", "conv.bias"), ("norm.weight", "norm_weight")]
    return [(oracle.get_parameter(theirs), module.get_parameter(ours)) for theirs, ours in names]


@pytest.mark.parametrize("T", [1, 16, 37])
@pytest.mark.parametrize("groups", [1, 2])
def test_module_equals_transformers(groups, T):
    torch.manual_seed(0)
    bias = groups == 2
    module = Mamba2(12, num_heads=4, head_dim=6, state_size=5, n_groups=groups, chunk_size=8, bias=bias)
    torch.nn.init.normal_(module.conv.bias)
    torch.nn.init.normal_(module.norm_weight)
    oracle = oracle_of(module, groups, bias)
    assert len(pairs(oracle, module)) == len(list(module.parameters())) == len(list(oracle.parameters()))
    x, weight = torch.randn(2, 2, T, 12).unbind()
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [layer(source) for layer, source in zip((module, oracle), inputs)]
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)
    for y in outputs:
        (y * weight).sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-4, atol=1e-4)
    for theirs, ours in pairs(oracle, module):
        torch.testing.assert_close(ours.grad, theirs.grad.view_as(ours), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_equals_transformers(side):
    module = Mamba2(12, num_heads=4, head_dim=6, state_size=5)
    torch.nn.init.normal_(module.conv.bias)
    mask = torch.ones(2, 9)
    mask[0, slice(0, 4) if side == "left" else slice(5, 9)] = 0
    x, oracle = torch.randn(2, 9, 12), oracle_of(module, 1, bias=False)
    expected = oracle(x, attention_mask=mask)
    torch.testing.assert_close(module(x, Stream(mask))[mask > 0], expected[mask > 0], rtol=1e-4, atol=1e-4)


def test_initial_values():
    module = Mamba2(8, num_heads=64, head_dim=2, state_size=4)
    torch.testing.assert_close(module.A_log.exp(), torch.arange(1.0, 65))
    dt = torch.nn.functional.softplus(module.dt_bias)
    assert 0.000999 < dt.min() < 0.003
    assert 0.03 < dt.max() < 0.1001
    assert (module.D == 1).all()
    assert (module.norm_weight == 1).all()


@pytest.mark.parametrize(
    ("T", "H", "G", "chunk_size"), [(0, 2, 1, 64), (1, 4, 2, 64), (50, 3, 3, 16), (64, 6, 2, 64), (130, 4, 1, 64)]
)
def test_flops_are_those_that_pytorch_counts(T, H, G, chunk_size):
    tensors = arguments(2, T, H=H, G=G)
    with FlopCounterMode(display=False) as counter:
        state_space_scan(**tensors, chunk_size=chunk_size)
    assert counter.get_total_flops() == scan_flops(2, T, H, 3, 5, G, chunk_size)


def simple_gla(q, k, v, g, scale, initial_state, output_final_state, cu_seqlens=None):
    """fla's function, token by token."""
    state, outputs = 0 if initial_state is None else initial_state, []
    for t in range(q.shape[1]):
        if cu_seqlens is not None and t in cu_seqlens.tolist():
            state = 0
        state = g[:, t].exp()[..., None, None] * state + (k[:, t, ..., None] * v[:, t, ..., None, :]).float()
        outputs.append(scale * (q[:, t, ..., None].float() * state).sum(-2))
    return torch.stack(outputs, 1).to(q.dtype), state if output_final_state else None


@pytest.mark.parametrize("packed", [False, True])
def test_kernel_of_fla(monkeypatch, packed):
    check_kernel_of_fla(
        monkeypatch, state_space_scan, arguments, "simple_gla", "chunk_simple_gla", simple_gla, packed, 2e-2, 2e-2
    )


def test_without_fla(monkeypatch):
    recurrence._import_fla.cache_clear()
    monkeypatch.setattr(recurrence, "_on_cuda", lambda x: True)
    assert recurrence.fla_kernel("simple_gla", "chunk_simple_gla", torch.ones(1, dtype=torch.bfloat16)) is None
