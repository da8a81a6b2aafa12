"""The rule against a loop over tokens in fp64; GatedDeltaNet against transformers' layer; FLOPs; fla's kernel."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen3NextConfig
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

from dynaconv.nn import GatedDeltaNet, Stream, delta_rule_flops, gated_delta_rule

from .recurrences import check_kernel_of_fla, compare_gradients


def loop(q, k, v, log_decay, beta, initial_state):
    repeats, outputs = v.shape[2] // k.shape[2], []
    q, k = (x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt() for x in (q, k))
    q, k = (x.repeat_interleave(repeats, 2) for x in (q / k.shape[-1] ** 0.5, k))
    state = v.new_zeros(v.shape[0], *v.shape[2:3], k.shape[3], v.shape[3]) if initial_state is None else initial_state
    for t in range(v.shape[1]):
        state = state * log_decay[:, t].exp()[..., None, None]
        update = beta[:, t, :, None] * (v[:, t] - (k[:, t, ..., None] * state).sum(-2))
        state = state + k[:, t, ..., None] * update[..., None, :]
        outputs.append((q[:, t, ..., None] * state).sum(-2))
    return torch.stack(outputs, 1) if outputs else torch.zeros_like(v), state


def arguments(B, T, G=2, H=4, K=5, V=3):
    torch.manual_seed(T)
    return {
        "q": torch.randn(B, T, G, K),
        "k": torch.randn(B, T, G, K),
        "v": torch.randn(B, T, H, V),
        "log_decay": -torch.rand(B, T, H),
        "beta": torch.rand(B, T, H),
        "initial_state": torch.randn(B, H, K, V),
    }


@pytest.mark.parametrize("chunk_size", [1, 16, 64])
@pytest.mark.parametrize("T", [0, 1, 2, 63, 64, 65, 130])
def test_rule_equals_a_loop_over_tokens(T, chunk_size):
    compare_gradients(lambda **t: gated_delta_rule(**t, chunk_size=chunk_size), loop, arguments(2, T))


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 3), st.integers(0, 23), st.integers(1, 3), st.integers(1, 3), st.integers(1, 30))
def test_rule_of_any_shape(B, T, G, R, chunk_size):
    tensors = arguments(B, T, G=G, H=G * R, K=2 + T % 4, V=1 + T % 3)
    compare_gradients(lambda **t: gated_delta_rule(**t, chunk_size=chunk_size), loop, tensors)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 3), st.lists(st.integers(0, 9), max_size=5), st.integers(1, 12))
def test_packed_rule_equals_each_sequence(B, lengths, chunk_size):
    tensors, start = {**arguments(B, sum(lengths)), "initial_state": None}, 0
    bounds = torch.tensor([0, *lengths * B]).cumsum(0)
    o, final = gated_delta_rule(**tensors, cu_seqlens=bounds, chunk_size=chunk_size)
    assert final is None
    for length in lengths:
        piece = {name: None if t is None else t[:, start : start + length] for name, t in tensors.items()}
        torch.testing.assert_close(o[:, start : start + length], gated_delta_rule(**piece)[0], rtol=1e-4, atol=1e-5)
        start += length


def test_rule_without_decay_and_with_strong_decay():
    for log_decay in (0.0, -300.0):
        tensors = arguments(1, 130) | {"log_decay": torch.full((1, 130, 4), log_decay)}
        compare_gradients(gated_delta_rule, loop, tensors, rtol=1e-3, atol=1e-3)


def test_rule_computes_in_fp32():
    tensors = {name: tensor.bfloat16() for name, tensor in arguments(2, 70).items()}
    expected, state = loop(**{name: tensor.double() for name, tensor in tensors.items()})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        o, final = gated_delta_rule(**tensors)
    assert (o.dtype, final.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(o, expected.bfloat16(), rtol=1e-2, atol=1e-5)
    torch.testing.assert_close(final, state.float(), rtol=1e-4, atol=1e-4)


G, K, V = 2, 5, 3


def oracle_of(module):
    """transformers' layer with the weights of `module`."""
    config = Qwen3NextConfig(
        hidden_size=12,
        linear_num_key_heads=G,
        linear_num_value_heads=module.num_heads,
        linear_key_head_dim=K,
        linear_value_head_dim=V,
        linear_conv_kernel_dim=4,
        rms_norm_eps=1e-6,
        num_hidden_layers=1,
        layer_types=["linear_attention"],
    )
    oracle = Qwen3NextGatedDeltaNet(config, layer_idx=0)
    with torch.no_grad():
        for name, value in export(dict(module.named_parameters()), module.sizes).items():
            oracle.get_parameter(name).copy_(value)
    return oracle


def export(ours, sizes):
    """Parameters, or their gradients, under the names and in the order of transformers: by key head."""
    qkv, z, b, a = ours["in_proj.weight"].split(sizes)
    parts = [*qkv.split([G * K, G * K, sizes[1]]), z]
    qkvz, ba = (torch.cat([x.unflatten(0, (G, -1)) for x in group], 1).flatten(0, 1) for group in (parts, (b, a)))
    return {
        "in_proj_qkvz.weight": qkvz,
        "in_proj_ba.weight": ba,
        "conv1d.weight": ours["conv.static"][:, None],
        "norm.weight": ours["norm_weight"],
        **{name: ours[name] for name in ("A_log", "dt_bias", "out_proj.weight")},
    }


def build(H=4, **options):
    module = GatedDeltaNet(12, num_key_heads=G, num_value_heads=H, key_head_dim=K, value_head_dim=V, **options)
    torch.nn.init.normal_(module.norm_weight)
    return module


@pytest.mark.parametrize("T", [1, 16, 37, 100])
@pytest.mark.parametrize("H", [2, 6])
def test_module_equals_transformers(H, T):
    torch.manual_seed(0)
    module = build(H, chunk_size=8)
    oracle, (x, weight) = oracle_of(module), torch.randn(2, 2, T, 12)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [layer(source) for layer, source in zip((module, oracle), inputs)]
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)
    for y in outputs:
        (y * weight).sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-4, atol=1e-4)
    ours = export({name: p.grad for name, p in module.named_parameters()}, module.sizes)
    theirs = {name: p.grad for name, p in oracle.named_parameters()}
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_padding_equals_transformers():
    module, mask, x = build(), torch.ones(2, 9), torch.randn(2, 9, 12)
    mask[0, :4] = 0
    expected = oracle_of(module)(x, attention_mask=mask)
    torch.testing.assert_close(module(x, Stream(mask))[mask > 0], expected[mask > 0], rtol=1e-4, atol=1e-4)


def test_initial_values():
    module = GatedDeltaNet(8, num_key_heads=64, num_value_heads=64, key_head_dim=2, value_head_dim=2)
    rates, dt = module.A_log.exp(), torch.nn.functional.softplus(module.dt_bias)
    assert 0.009 < rates.min() < 2
    assert 14 < rates.max() < 16.01
    assert 0.000999 < dt.min() < 0.003
    assert 0.03 < dt.max() < 0.1001
    assert (module.norm_weight == 1).all()


@pytest.mark.parametrize(
    ("T", "G", "H", "chunk_size"), [(0, 2, 2, 64), (1, 2, 4, 64), (50, 3, 3, 16), (64, 2, 6, 64), (130, 1, 4, 64)]
)
def test_flops_are_those_that_pytorch_counts(T, G, H, chunk_size):
    tensors = arguments(2, T, G=G, H=H)
    with FlopCounterMode(display=False) as counter:
        gated_delta_rule(**tensors, chunk_size=chunk_size)
    assert counter.get_total_flops() == delta_rule_flops(2, T, G, H, 5, 3, chunk_size)


def kernel(q, k, v, g, beta, initial_state, output_final_state, use_qk_l2norm_in_kernel, cu_seqlens=None):
    """fla's function, sequence by sequence."""
    assert use_qk_l2norm_in_kernel
    bounds = [0, q.shape[1]] if cu_seqlens is None else cu_seqlens.tolist()
    tensors = [tensor.float() for tensor in (q, k, v, g, beta)]
    pieces = [
        loop(*(tensor[:, start:end] for tensor in tensors), initial_state) for start, end in zip(bounds, bounds[1:])
    ]
    o = torch.cat([o for o, _ in pieces], 1).to(q.dtype)
    return o, pieces[-1][1] if output_final_state else None


@pytest.mark.parametrize("packed", [False, True])
def test_kernel_of_fla(monkeypatch, packed):
    check_kernel_of_fla(
        monkeypatch,
        gated_delta_rule,
        arguments,
        "gated_delta_rule",
        "chunk_gated_delta_rule",
        kernel,
        packed,
        1e-2,
        1e-5,
    )
