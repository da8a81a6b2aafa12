"""causal-conv1d against its definition, written in plain PyTorch."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

import dynaconv
from dynaconv.interop import causal_conv1d as cc
from dynaconv.interop import fla
from dynaconv.interop.causal_conv1d import cpp_functions as cpp

from .definitions import B, D, T, W, assert_same, conv, last, randn


@pytest.mark.parametrize("activation", [None, "silu", "swish"])
@pytest.mark.parametrize("width", [1, 2, 4])
def test_sequences(backend, width, activation):
    assert_same(
        lambda x, w, b: cc.causal_conv1d_fn(x, w, b, activation=activation),
        lambda x, w, b: conv(x, w, b, activation=activation),
        randn(B, D, T),
        randn(D, width),
        randn(D),
    )


@pytest.mark.parametrize("length", [1, 2, 3, T])
def test_states(backend, length):
    assert_same(
        lambda x, w, s: cc.causal_conv1d_fn(x, w, initial_states=s, return_final_states=True),
        lambda x, w, s: (conv(x, w, past=s), last(x, W - 1, s)),
        randn(B, D, length),
        randn(D, W),
        randn(B, D, W - 1),
    )


def test_final_states_out():
    x, weight, out = randn(B, D, T), randn(D, W), torch.full((B, D, W - 1), torch.nan)
    final = cc.causal_conv1d_fn(x, weight, return_final_states=True, final_states_out=out)[1]
    assert final is out
    assert torch.equal(out, x[..., -3:])
    assert torch.autograd.grad(final.sum(), x)[0].sum() == 3 * B * D


def test_final_states_are_no_view_of_the_input():
    x, weight = torch.randn(B, D, T), torch.randn(D, W)
    before = x.clone()
    for states in (
        cc.causal_conv1d_fn(x, weight, return_final_states=True)[1],
        fla.causal_conv1d(x.transpose(1, 2), weight, output_final_state=True)[1],
        cc.causal_conv1d_varlen_states(x[0].T, torch.tensor([0, T]), W - 1),
    ):
        states.zero_()
    assert torch.equal(x, before)


@pytest.mark.parametrize("with_states", [False, True])
@pytest.mark.parametrize(
    "rows",
    [
        ([0, 0, 0, 0, 1, 1, 1, 1, 1], [3, 4, 4, 5, 5, 5, 6, 6, 7]),
        ([0, 1, 1, -1, -1, 2, 2, 2, 2], [-1, -1, 0, 0, 0, 0, 0, -1, 0]),
    ],
)
def test_seq_idx(backend, rows, with_states):
    seq_idx = torch.tensor(rows, dtype=torch.int32)

    def oracle(x, w, b, past):
        inputs = torch.cat([past if with_states else 0 * past, x], 2)
        outputs = []
        for row, ids in enumerate(rows):
            for t in range(T):
                total = b
                for k in range(W):
                    if set(ids[max(t - k, 0) : t + 1]) == {ids[t]}:
                        total = total + w[:, W - 1 - k] * inputs[row, :, t - k + W - 1]
                outputs.append(F.silu(total) if ids[t] >= 0 else 0 * b)
        return torch.stack(outputs).view(B, T, D).transpose(1, 2)

    def ours(x, w, b, past):
        states = past if with_states else None
        # So that the states have a gradient, 0, where they are not used.
        return cc.causal_conv1d_fn(x, w, b, seq_idx, states, activation="silu") + 0 * past.sum()

    assert_same(ours, oracle, randn(B, D, T), randn(D, W), randn(D), randn(B, D, W - 1))


@pytest.mark.parametrize("empty", [(0, T), (B, 0)])
def test_nothing(backend, empty):
    rows, length = empty
    x, seq_idx = torch.randn(rows, D, length), torch.zeros(rows, length, dtype=torch.int32)
    states = torch.randn(rows, D, W - 1)
    for options in ({}, {"seq_idx": seq_idx}, {"seq_idx": seq_idx, "initial_states": states}):
        assert cc.causal_conv1d_fn(x, torch.randn(D, W), **options).shape == x.shape


@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize("size", [3, 4, 7])
@pytest.mark.parametrize("chunks", [[1] * T, [2, 1, 4, 2], [8, 1], [T]])
def test_updates_are_the_whole(backend, chunks, size, circular):
    x, weight, bias = torch.randn(B, D, T), torch.randn(D, W), torch.randn(D)
    state, seen, pieces = torch.zeros(B, D, size), torch.zeros(B, dtype=torch.int32), []
    for chunk in x.split(chunks, dim=2):
        chunk = chunk[..., 0] if chunk.shape[2] == 1 else chunk
        y = cc.causal_conv1d_update(chunk, state, weight, bias, "silu", seen if circular else None)
        assert y.shape == chunk.shape
        pieces.append(y.reshape(B, D, -1))
        seen = seen + pieces[-1].shape[2]
    torch.testing.assert_close(torch.cat(pieces, 2), conv(x, weight, bias, activation="silu"), rtol=1e-4, atol=1e-5)
    order = [(T - size + s) % size for s in range(size)] if circular else list(range(size))
    assert torch.equal(state[..., order], last(x, size))


@pytest.mark.parametrize("length", [1, 3, 6])
def test_circular_buffer_is_written_where_the_peer_writes_it(backend, length):
    size, seen, rows = 5, [7, 11, 3], [2, -1, 0]
    x, state, weight = torch.randn(3, D, length), torch.randn(4, D, size), torch.randn(D, W)
    expected, outputs = state.clone(), torch.zeros(3, D, length)
    for b, (count, row) in enumerate(zip(seen, rows, strict=True)):
        if row < 0:
            continue
        past = torch.stack([expected[row, :, (count - W + 1 + k) % size] for k in range(W - 1)], 1)
        outputs[b] = conv(x[b : b + 1], weight, past=past[None])[0]
        for t in range(length):
            expected[row, :, (count + t) % size] = x[b, :, t]
    y = cc.causal_conv1d_update(
        x,
        state,
        weight,
        cache_seqlens=torch.tensor(seen, dtype=torch.int32),
        conv_state_indices=torch.tensor(rows, dtype=torch.int32),
    )
    torch.testing.assert_close(y, outputs, rtol=1e-4, atol=1e-5)
    assert torch.equal(state, expected)


@pytest.mark.parametrize("circular", [False, True])
def test_padding_rows(backend, circular):
    x, state, weight, bias = torch.randn(3, D), torch.randn(5, D, 4), torch.randn(D, W), torch.randn(D)
    before = state.clone()
    seen = torch.tensor([4, 0, 8]) if circular else None
    y = cc.causal_conv1d_update(x, state, weight, bias, None, seen, torch.tensor([3, -1, 1], dtype=torch.int32))
    assert y[1].eq(0).all()
    expected = conv(x[[0, 2], :, None], weight, bias, before[[3, 1], :, 1:])[..., 0]
    torch.testing.assert_close(y[[0, 2]], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(state[[0, 2, 4]], before[[0, 2, 4]])
    newest = 0 if circular else -1
    assert torch.equal(state[[3, 1], :, newest], x[[0, 2]])


def test_state_may_have_any_strides(backend):
    x, weight, state = torch.randn(B, D), torch.randn(D, W), torch.randn(B, W, 2 * D).transpose(1, 2)[:, ::2]
    before = state.clone()
    y = cc.causal_conv1d_update(x, state, weight)
    torch.testing.assert_close(y, conv(x[..., None], weight, past=before[..., 1:])[..., 0], rtol=1e-4, atol=1e-5)
    assert torch.equal(state, last(x[..., None], W, before))


def test_varlen_states():
    x, ends = torch.randn(T, D), [0, 5, 6, 6, T]
    states = cc.causal_conv1d_varlen_states(x, torch.tensor(ends, dtype=torch.int32), 4)
    expected = [last(x[a:b].T[None], 4) for a, b in pairwise(ends)]
    assert torch.equal(states, torch.cat(expected))


def test_our_operator_continues_their_state_in_place(backend):
    x, weight, theirs = torch.randn(B, 2, D), torch.randn(D, W), torch.randn(B, D, 5)
    ours = theirs.clone()
    y = cc.causal_conv1d_update(x.transpose(1, 2), theirs, weight)
    z = dynaconv.static_conv(x, weight, state=cc.import_state(ours))
    assert torch.equal(y.transpose(1, 2), z)
    assert torch.equal(theirs, ours)
    assert torch.equal(cc.export_state(cc.import_state(ours)), ours)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtypes(backend, dtype):
    x, weight, state = torch.randn(B, D, T, dtype=dtype), torch.randn(D, W), torch.randn(B, D, W - 1, dtype=dtype)
    y, final = cc.causal_conv1d_fn(x, weight, initial_states=state, return_final_states=True)
    torch.testing.assert_close(y, conv(x.double(), weight.double(), past=state.double()).to(dtype))
    assert torch.equal(final, last(x, W - 1, state))


def test_varlen_states_with_padding_behind_the_last_sequence():
    x, ends = torch.randn(T, D), [0, 3, 7]
    states = cc.causal_conv1d_varlen_states(x, torch.tensor(ends), 4)
    assert torch.equal(states, torch.cat([last(x[a:b].T[None], 4) for a, b in pairwise(ends)]))


def test_varlen_states_compile():
    torch._dynamo.reset()
    x, ends = torch.randn(T, D), torch.tensor([0, 3, 7])
    compiled = torch.compile(cc.causal_conv1d_varlen_states, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x, ends, 4), cc.causal_conv1d_varlen_states(x, ends, 4))


@pytest.mark.parametrize("circular", [False, True])
def test_updates_leave_autograd_alone(backend, circular):
    """As the peer does: parameters may require gradients, and the results have none."""
    x, weight, bias, state = randn(B, D), randn(D, W), randn(D), torch.randn(B, D, 5)
    seen, again = torch.tensor([5, 10]) if circular else None, state.clone()
    y = cc.causal_conv1d_update(x, state, weight, bias, "silu", seen)
    assert not y.requires_grad
    assert not state.requires_grad
    with torch.no_grad():
        assert torch.equal(cc.causal_conv1d_update(x, again, weight, bias, "silu", seen), y)
    assert torch.equal(state, again)


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("states", [False, True])
def test_functions_without_autograd(backend, silu, states):
    """Forward, backward and update of `cpp_functions` are those of the public functions."""
    x, weight, bias, dout = randn(B, D, T), randn(D, W), randn(D), torch.randn(B, D, T)
    past, activation = randn(B, D, W - 1) if states else None, "silu" if silu else None
    out, dfinal = torch.zeros(B, D, W - 1), torch.randn(B, D, W - 1) if states else None
    y, final = cc.causal_conv1d_fn(x, weight, bias, None, past, True, None, activation)
    z = cpp.causal_conv1d_fwd_function(x, weight, bias, None, past, out, silu)
    assert not z.requires_grad
    assert torch.equal(z, y)
    assert torch.equal(out, final)
    leaves = [x, weight, bias, *([past] if states else [])]
    outputs, grads = ([y, final], [dout, dfinal]) if states else ([y], [dout])
    expected = torch.autograd.grad(outputs, leaves, grads)
    dx = torch.zeros(B, D, T)
    actual = cpp.causal_conv1d_bwd_function(x, weight, bias, dout, None, past, dfinal, dx, states, silu)
    assert actual[0] is dx
    torch.testing.assert_close(actual[:3], expected[:3])
    assert (actual[3] is None) == (not states)
    if states:
        torch.testing.assert_close(actual[3], expected[3])
    buffers = [torch.randn(B, D, W - 1)] * 2
    buffers[1] = buffers[0].clone()
    y = cpp.causal_conv1d_update_function(x, buffers[0], weight, bias, silu, None, None)
    assert torch.equal(y, cc.causal_conv1d_update(x, buffers[1], weight, bias, activation))
    assert torch.equal(*buffers)


def test_backward_function_in_an_autograd_function(backend):
    """As mamba_ssm has it, without a bias and with sequences in a row."""
    ids = torch.tensor([[0] * 4 + [1] * 5, [2] * 9], dtype=torch.int32)

    class Conv(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight):
            ctx.save_for_backward(x, weight)
            return cpp.causal_conv1d_fwd_function(x, weight, None, ids, None, None, True)

        @staticmethod
        def backward(ctx, dout):
            results = cpp.causal_conv1d_bwd_function(*ctx.saved_tensors, None, dout, ids, None, None, None, False, True)
            assert results[2:] == (None, None)
            return results[:2]

    assert_same(
        Conv.apply, lambda x, w: cc.causal_conv1d_fn(x, w, None, ids, activation="silu"), randn(B, D, T), randn(D, W)
    )
