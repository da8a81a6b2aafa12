"""Every function of a peer against its definition, written here in plain PyTorch; every converter there and back."""

import re
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dynaconv
from dynaconv.interop import causal_conv1d as cc
from dynaconv.interop import conv1d, dynamic_conv1d, fla, inkling2

B, T, D, W = 2, 9, 6, 4


@pytest.fixture(params=["reference", "cpu"])
def backend(request):
    with dynaconv.backend(request.param):
        yield


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


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


class TestCausalConv1d:
    @pytest.mark.parametrize("activation", [None, "silu", "swish"])
    @pytest.mark.parametrize("width", [1, 2, 4])
    def test_sequences(self, backend, width, activation):
        assert_same(
            lambda x, w, b: cc.causal_conv1d_fn(x, w, b, activation=activation),
            lambda x, w, b: conv(x, w, b, activation=activation),
            randn(B, D, T), randn(D, width), randn(D),
        )  # fmt: skip

    @pytest.mark.parametrize("length", [1, 2, 3, T])
    def test_states(self, backend, length):
        assert_same(
            lambda x, w, s: cc.causal_conv1d_fn(x, w, initial_states=s, return_final_states=True),
            lambda x, w, s: (conv(x, w, past=s), last(x, W - 1, s)),
            randn(B, D, length), randn(D, W), randn(B, D, W - 1),
        )  # fmt: skip

    def test_final_states_out(self):
        x, weight, out = randn(B, D, T), randn(D, W), torch.full((B, D, W - 1), torch.nan)
        final = cc.causal_conv1d_fn(x, weight, return_final_states=True, final_states_out=out)[1]
        assert final is out
        assert torch.equal(out, x[..., -3:])
        assert torch.autograd.grad(final.sum(), x)[0].sum() == 3 * B * D

    def test_final_states_are_no_view_of_the_input(self):
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
    def test_seq_idx(self, backend, rows, with_states):
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
    def test_nothing(self, backend, empty):
        rows, length = empty
        x, seq_idx = torch.randn(rows, D, length), torch.zeros(rows, length, dtype=torch.int32)
        states = torch.randn(rows, D, W - 1)
        for options in ({}, {"seq_idx": seq_idx}, {"seq_idx": seq_idx, "initial_states": states}):
            assert cc.causal_conv1d_fn(x, torch.randn(D, W), **options).shape == x.shape

    @pytest.mark.parametrize("circular", [False, True])
    @pytest.mark.parametrize("size", [3, 4, 7])
    @pytest.mark.parametrize("chunks", [[1] * T, [2, 1, 4, 2], [8, 1], [T]])
    def test_updates_are_the_whole(self, backend, chunks, size, circular):
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
    def test_circular_buffer_is_written_where_the_peer_writes_it(self, backend, length):
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
    def test_padding_rows(self, backend, circular):
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

    def test_state_may_have_any_strides(self, backend):
        x, weight, state = torch.randn(B, D), torch.randn(D, W), torch.randn(B, W, 2 * D).transpose(1, 2)[:, ::2]
        before = state.clone()
        y = cc.causal_conv1d_update(x, state, weight)
        torch.testing.assert_close(y, conv(x[..., None], weight, past=before[..., 1:])[..., 0], rtol=1e-4, atol=1e-5)
        assert torch.equal(state, last(x[..., None], W, before))

    def test_varlen_states(self):
        x, ends = torch.randn(T, D), [0, 5, 6, 6, T]
        states = cc.causal_conv1d_varlen_states(x, torch.tensor(ends, dtype=torch.int32), 4)
        expected = [last(x[a:b].T[None], 4) for a, b in pairwise(ends)]
        assert torch.equal(states, torch.cat(expected))

    def test_our_operator_continues_their_state_in_place(self, backend):
        x, weight, theirs = torch.randn(B, 2, D), torch.randn(D, W), torch.randn(B, D, 5)
        ours = theirs.clone()
        y = cc.causal_conv1d_update(x.transpose(1, 2), theirs, weight)
        z = dynaconv.static_conv(x, weight, state=cc.import_state(ours))
        assert torch.equal(y.transpose(1, 2), z)
        assert torch.equal(theirs, ours)
        assert torch.equal(cc.export_state(cc.import_state(ours)), ours)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
    def test_dtypes(self, backend, dtype):
        x, weight, state = torch.randn(B, D, T, dtype=dtype), torch.randn(D, W), torch.randn(B, D, W - 1, dtype=dtype)
        y, final = cc.causal_conv1d_fn(x, weight, initial_states=state, return_final_states=True)
        torch.testing.assert_close(y, conv(x.double(), weight.double(), past=state.double()).to(dtype))
        assert torch.equal(final, last(x, W - 1, state))


class TestFla:
    @pytest.mark.parametrize("activation", [None, "silu", "swish"])
    def test_everything(self, backend, activation):
        def oracle(x, w, b, r, s):
            x, size = x.transpose(1, 2), w.shape[1]
            y = conv(x, w, b, s[..., 1:], activation)
            return y.transpose(1, 2) + r, last(x, size, s)

        assert_same(
            lambda x, w, b, r, s: fla.causal_conv1d(x, w, b, r, s, True, activation),
            oracle, randn(B, T, D), randn(D, W), randn(D), randn(B, T, D), randn(B, D, W),
        )  # fmt: skip

    @pytest.mark.parametrize("ends", [[0, T], [0, 1, 6, 6, 8, T]])
    def test_packed(self, backend, ends):
        cu_seqlens = torch.tensor(ends)

        def oracle(x, w, s):
            parts = [x[:, a:b].transpose(1, 2) for a, b in pairwise(ends)]
            y = [conv(p, w, past=s[n : n + 1, :, 1:]) if p.shape[2] else p for n, p in enumerate(parts)]
            return torch.cat(y, 2).transpose(1, 2), torch.cat([last(p, W, s[n : n + 1]) for n, p in enumerate(parts)])

        assert_same(
            lambda x, w, s: fla.causal_conv1d(x, w, initial_state=s, output_final_state=True, cu_seqlens=cu_seqlens),
            oracle, randn(1, T, D), randn(D, W), randn(len(ends) - 1, D, W),
        )  # fmt: skip

    def test_no_state(self, backend):
        x, weight = torch.randn(B, T, D), torch.randn(D, W)
        y, state = fla.causal_conv1d(x, weight, backend="triton")
        assert state is None
        torch.testing.assert_close(y, conv(x.transpose(1, 2), weight).transpose(1, 2), rtol=1e-4, atol=1e-5)
        state = fla.causal_conv1d(x[:, :2], weight, output_final_state=True)[1]
        assert torch.equal(state, last(x[:, :2].transpose(1, 2), W))
        assert state.is_contiguous()

    def test_chunks_are_the_whole(self, backend):
        x, weight, state, pieces = torch.randn(B, T, D), torch.randn(D, W), None, []
        for chunk in x.split([2, 1, 4, 2], dim=1):
            y, state = fla.causal_conv1d(chunk, weight, initial_state=state, output_final_state=True)
            pieces.append(y)
        torch.testing.assert_close(torch.cat(pieces, 1), fla.causal_conv1d(x, weight)[0])

    def test_states_there_and_back(self, backend):
        x, weight = torch.randn(B, T, D), torch.randn(D, W)
        theirs = fla.causal_conv1d(x, weight, output_final_state=True)[1]
        ours = dynaconv.static_conv(x, weight, return_final_state=True)[1]
        assert torch.equal(fla.import_state(theirs), ours)
        assert torch.equal(fla.import_state(fla.export_state(ours)), ours)
        cache = theirs.clone()
        y = dynaconv.static_conv(x[:, :1], weight, state=cache.transpose(1, 2))
        assert torch.equal(cache, fla.causal_conv1d(x[:, :1], weight, initial_state=theirs, output_final_state=True)[1])
        exported = fla.causal_conv1d(x[:, :1], weight, initial_state=fla.export_state(ours))[0]
        torch.testing.assert_close(exported, y)

    def test_dtype_of_the_output(self, backend):
        x, residual = torch.randn(B, T, D).bfloat16(), torch.randn(B, T, D)
        assert fla.causal_conv1d(x, torch.randn(D, W), residual=residual)[0].dtype == torch.bfloat16


def backward_taps(x: Tensor, taps: Tensor, residual: bool) -> Tensor:
    """The definition of the kernels of 2026: sum_k taps[b, t, d, k] * x[b, t - k, d]."""
    total = x if residual else 0
    for k in range(taps.shape[-1]):
        total = total + taps[..., k] * F.pad(x, (0, 0, k, 0))[:, : x.shape[1]]
    return total


class TestDynamicConv1d:
    @pytest.mark.parametrize("residual", [False, True])
    @pytest.mark.parametrize(("heads", "width"), [(1, 4), (3, 3), (D, 1)])
    def test_headwise(self, backend, heads, width, residual):
        def oracle(x, weight, static_w):
            return backward_taps(x, weight.repeat_interleave(D // heads, 2) + static_w.T, residual)

        assert_same(
            lambda *inputs: dynamic_conv1d.headwise_dynamic_convolution(*inputs, residual),
            oracle, randn(B, T, D), randn(B, T, heads, width), randn(width, D),
        )  # fmt: skip

    @pytest.mark.parametrize("residual", [False, True])
    @pytest.mark.parametrize(("rank", "width"), [(1, 4), (5, 3)])
    def test_lowrank(self, backend, rank, width, residual):
        def oracle(x, z, U, static_w):
            taps = (z @ U).view(B, T, width, D) + static_w
            return backward_taps(x, taps.transpose(2, 3), residual)

        assert_same(
            lambda *inputs: dynamic_conv1d.lowrank_dynamic_convolution(*inputs, residual),
            oracle, randn(B, T, D), randn(B, T, rank), randn(rank, width * D), randn(width, D),
        )  # fmt: skip

    def test_without_static(self, backend):
        x, weight, z, U = randn(B, T, D), randn(B, T, 3, W), randn(B, T, 2), randn(2, W * D)
        assert_same(
            dynamic_conv1d.headwise_dynamic_convolution,
            lambda x, weight: backward_taps(x, weight.repeat_interleave(2, 2), False), x, weight,
        )  # fmt: skip
        assert_same(
            dynamic_conv1d.lowrank_dynamic_convolution,
            lambda x, z, U: backward_taps(x, (z @ U).view(B, T, W, D).transpose(2, 3), False), x, z, U,
        )  # fmt: skip

    def test_tap_order_matters(self):
        x, weight, static_w, z, U = (torch.randn(s) for s in ((B, T, D), (B, T, 3, W), (W, D), (B, T, 2), (2, W * D)))
        headwise = dynamic_conv1d.headwise_dynamic_convolution(x, weight, static_w)
        assert not torch.allclose(
            headwise, dynaconv.dynamic_conv(x, weight, static=dynamic_conv1d.import_static(static_w)), atol=0.1
        )
        assert not torch.allclose(
            headwise, dynaconv.dynamic_conv(x, dynamic_conv1d.import_filters(weight), static=static_w.T), atol=0.1
        )
        lowrank = dynamic_conv1d.lowrank_dynamic_convolution(x, z, U)
        assert not torch.allclose(lowrank, dynaconv.lowrank_conv(x, z, U.view(2, W, D).transpose(1, 2)), atol=0.1)
        assert not torch.allclose(lowrank, dynaconv.lowrank_conv(x, z, U.view(2, D, W)), atol=0.1)

    def test_layouts(self):
        """One number of each weight, found again at its place."""
        static_w, U = torch.zeros(W, D), torch.zeros(2, W * D)
        static_w[1, 5], U[1, 1 * D + 5] = 1, 1
        assert dynamic_conv1d.import_static(static_w).nonzero().tolist() == [[5, W - 2]]
        assert dynamic_conv1d.import_basis(U, D).nonzero().tolist() == [[1, 5, W - 2]]

    def test_there_and_back(self):
        static_w, U, filters = torch.randn(W, D), torch.randn(2, W * D), torch.randn(B, T, 3, W)
        assert torch.equal(dynamic_conv1d.export_static(dynamic_conv1d.import_static(static_w)), static_w)
        assert torch.equal(dynamic_conv1d.export_basis(dynamic_conv1d.import_basis(U, D)), U)
        assert torch.equal(dynamic_conv1d.export_filters(dynamic_conv1d.import_filters(filters)), filters)
        assert torch.equal(dynamic_conv1d.import_basis(U.T.contiguous().T, D), dynamic_conv1d.import_basis(U, D))


class TestInkling2:
    HEADS, C = 3, 5

    @pytest.fixture
    def module(self):
        modeling = pytest.importorskip("transformers.models.inkling2.modeling_inkling2")
        module = modeling.Inkling2DynamicShortConvolution(D, self.C, self.HEADS, W, layer_idx=0, conv_idx=0)
        nn.init.normal_(module.static_weight)
        return module

    @pytest.mark.parametrize("as_state_dict", [False, True])
    def test_module(self, backend, module, as_state_dict):
        x, generator, parameters = randn(B, T, D), randn(B, T, self.C), list(module.parameters())
        source = dict(module.state_dict(keep_vars=True)) if as_state_dict else module
        assert_same(
            lambda x, generator, *_: inkling2.dynamic_short_convolution(source, x, generator),
            lambda x, generator, *_: module(x, generator), x, generator, *parameters,
        )  # fmt: skip

    def test_mask_by_zeroing(self, module):
        x, generator, mask = torch.randn(B, T, D), torch.randn(B, T, self.C), torch.ones(B, T, dtype=torch.bool)
        mask[0, :3] = False
        y = inkling2.dynamic_short_convolution(module, x * mask[..., None], generator)
        torch.testing.assert_close(y[mask], module(x, generator, conv_mask=mask)[mask], rtol=1e-4, atol=1e-5)

    def test_streams(self, backend, module):
        x, generator = torch.randn(B, T, D), torch.randn(B, T, self.C)
        state, pieces = torch.zeros(B, W - 1, D), []
        with torch.no_grad():
            for start, end in ((0, 4), (4, 5), (5, T)):
                pieces.append(
                    inkling2.dynamic_short_convolution(module, x[:, start:end], generator[:, start:end], state=state)
                )
            torch.testing.assert_close(torch.cat(pieces, 1), module(x, generator), rtol=1e-4, atol=1e-5)

    def test_tap_order_matters(self, module):
        x, generator = torch.randn(B, T, D), torch.randn(B, T, self.C)
        expected = module(x, generator)
        for name in ("static_weight", "weight_proj.weight"):
            parameters = dict(module.state_dict())
            flipped = parameters[name].unflatten(0, (-1, W)).flip(1).flatten(0, 1)
            y = inkling2.dynamic_short_convolution({**parameters, name: flipped}, x, generator)
            assert not torch.allclose(y, expected, atol=0.05)

    def test_projection_there_and_back(self):
        weight = torch.randn(self.HEADS * W, self.C)
        ours = inkling2.import_projection(weight, W)
        assert torch.equal(ours[0], weight[W - 1])
        assert torch.equal(inkling2.export_projection(ours, W), weight)


class TestConv1d:
    @pytest.mark.parametrize("bias", [False, True])
    def test_module(self, backend, bias):
        module, x = nn.Conv1d(D, D, W, groups=D, padding=W - 1, bias=bias), randn(B, T, D)

        def ours(x, *_):
            filters, offset = conv1d.import_module(module)
            return dynaconv.static_conv(x, filters, bias=offset)

        assert_same(ours, lambda x, *_: module(x.transpose(1, 2))[..., :T].transpose(1, 2), x, *module.parameters())

    def test_same_padding(self, backend):
        module, x = nn.Conv1d(D, D, 3, groups=D, padding="same", bias=False), torch.randn(B, T, D)
        y = dynaconv.static_conv(x, conv1d.import_module(module)[0], padding="same")
        torch.testing.assert_close(y, module(x.transpose(1, 2)).transpose(1, 2), rtol=1e-4, atol=1e-5)

    def test_there_and_back(self):
        weight = torch.randn(D, 1, W)
        assert torch.equal(conv1d.export_filters(conv1d.import_filters(weight)), weight)
        module = nn.Conv1d(D, D, W, groups=D)
        assert conv1d.import_module(module)[0].data_ptr() == module.weight.data_ptr()

    def test_tap_order_matters(self):
        module, x = nn.Conv1d(D, D, W, groups=D, padding=W - 1, bias=False), torch.randn(B, T, D)
        y = dynaconv.static_conv(x, conv1d.import_module(module)[0].flip(1))
        assert not torch.allclose(y, module(x.transpose(1, 2))[..., :T].transpose(1, 2), atol=0.05)


X, WEIGHT, STATE = torch.randn(B, D, T), torch.randn(D, W), torch.randn(B, D, W - 1)
TOKENS, HEADWISE, Z, U = X.transpose(1, 2), torch.randn(B, T, 3, W), torch.randn(B, T, 2), torch.randn(2, W * D)
IDS = torch.zeros(B, T, dtype=torch.int32)
PARAMETERS = {"static_weight": torch.randn(W, D), "weight_proj.weight": torch.randn(3 * W, 5)}
MISUSES = {
    "x of two dimensions": (lambda: cc.causal_conv1d_fn(X[0], WEIGHT), ValueError, "x must be [B, D, T]; got [6, 9]"),
    "x a list": (lambda: cc.causal_conv1d_update([1.0], STATE, WEIGHT), TypeError, "x must be a floating-point tensor; got list"),
    "weight [D, 1, W]": (lambda: cc.causal_conv1d_fn(X, WEIGHT[:, None]), ValueError, "weight must be [D = 6, W]; got [6, 1, 4]"),
    "weight of other channels": (lambda: fla.causal_conv1d(TOKENS, WEIGHT[1:]), ValueError, "weight must be [D = 6, W]; got [5, 4]"),
    "weight elsewhere": (lambda: cc.causal_conv1d_fn(X, WEIGHT.to("meta")), TypeError, "weight must be on the device of x, cpu; got meta"),
    "weight without taps": (lambda: cc.causal_conv1d_fn(X, WEIGHT[:, :0]), ValueError, "at least one tap"),
    "bias": (lambda: cc.causal_conv1d_fn(X, WEIGHT, torch.randn(5)), ValueError, "bias must be [D] = [6]; got [5]"),
    "activation": (lambda: cc.causal_conv1d_fn(X, WEIGHT, activation="relu"), ValueError, "got 'relu'"),
    "initial_states": (
        lambda: cc.causal_conv1d_fn(X, WEIGHT, initial_states=TOKENS[:, :3]), ValueError,
        "initial_states must be [B = 2, D = 6, W-1 = 3]; got [2, 3, 6]",
    ),
    "final_states_out alone": (lambda: cc.causal_conv1d_fn(X, WEIGHT, final_states_out=STATE), ValueError, "final_states_out needs return_final_states=True"),
    "seq_idx of floats": (lambda: cc.causal_conv1d_fn(X, WEIGHT, None, IDS.float()), TypeError, "seq_idx must be an int32 or int64 tensor; got a tensor of torch.float32"),
    "seq_idx of another length": (lambda: cc.causal_conv1d_fn(X, WEIGHT, None, IDS[:, 1:]), ValueError, "seq_idx must be [B = 2, T = 9]; got [2, 8]"),
    "seq_idx with states out": (lambda: cc.causal_conv1d_fn(X, WEIGHT, None, IDS, return_final_states=True), ValueError, "return_final_states must be False with seq_idx"),
    "short state": (lambda: cc.causal_conv1d_update(X, STATE[..., 1:], WEIGHT), ValueError, "conv_state must hold W - 1 = 3 inputs or more; got 2"),
    "state rows": (lambda: cc.causal_conv1d_update(X, STATE[:1], WEIGHT), ValueError, "conv_state must be [M = 2, D = 6, S]; got [1, 6, 3]"),
    "state in training": (lambda: cc.causal_conv1d_update(X.clone().requires_grad_(), STATE, WEIGHT), ValueError, "conv_state is overwritten in place"),
    "indices": (lambda: cc.causal_conv1d_update(X, STATE, WEIGHT, conv_state_indices=IDS[0]), ValueError, "conv_state_indices must be [B = 2]; got [9]"),
    "cache_seqlens": (lambda: cc.causal_conv1d_update(X, STATE, WEIGHT, cache_seqlens=torch.ones(2)), TypeError, "cache_seqlens must be an int32 or int64 tensor"),
    "no ends": (lambda: cc.causal_conv1d_varlen_states(X[0], IDS[0, :0], 3), ValueError, "cu_seqlens must be [N+1] with N >= 0; got [0]"),
    "ends": (lambda: cc.causal_conv1d_varlen_states(X[0], torch.tensor([0, 5]), 3), ValueError, "end at T = 6; got [0, 5]"),
    "state_len": (lambda: cc.causal_conv1d_varlen_states(X[0], torch.tensor([0, 6]), -1), ValueError, "state_len must be 0 or more; got -1"),
    "causal-conv1d state": (lambda: cc.import_state(STATE[0]), ValueError, "states must be [N, D, S]; got [6, 3]"),
    "fla state": (
        lambda: fla.causal_conv1d(TOKENS, WEIGHT, initial_state=STATE), ValueError, "initial_state must be [N = 2, D = 6, W = 4]; got [2, 6, 3]",
    ),
    "fla residual": (lambda: fla.causal_conv1d(TOKENS, WEIGHT, residual=X), ValueError, "residual must be [B = 2, T = 9, D = 6]; got [2, 6, 9]"),
    "fla residual of another type": (lambda: fla.causal_conv1d(TOKENS, WEIGHT, residual=True), TypeError, "residual must be a floating-point tensor; got bool"),
    "fla context parallelism": (lambda: fla.causal_conv1d(TOKENS, WEIGHT, cp_context=1), ValueError, "cp_context must be None"),
    "fla packed rows": (lambda: fla.causal_conv1d(TOKENS, WEIGHT, cu_seqlens=torch.tensor([0, T])), ValueError, "x must be [1, T, D]"),
    "fla state without slots": (lambda: fla.import_state(STATE[..., :0]), ValueError, "states must be [N, D, W] with W >= 1; got W = 0"),
    "headwise tokens": (
        lambda: dynamic_conv1d.headwise_dynamic_convolution(TOKENS, HEADWISE[:, 1:]), ValueError, "weight must be [B = 2, T = 9, H, W]; got [2, 8, 3, 4]",
    ),
    "headwise heads": (
        lambda: dynamic_conv1d.headwise_dynamic_convolution(TOKENS, HEADWISE.transpose(2, 3)), ValueError, "weight must be for a number of heads that divides D; got H = 4, D = 6",
    ),
    "static_w": (
        lambda: dynamic_conv1d.headwise_dynamic_convolution(TOKENS, HEADWISE, WEIGHT), ValueError, "static_w must be [W = 4, D = 6]; got [6, 4]",
    ),
    "rank": (lambda: dynamic_conv1d.lowrank_dynamic_convolution(TOKENS, Z, U[:1]), ValueError, "U must be [R = 2, W*D]; got [1, 24]"),
    "columns": (lambda: dynamic_conv1d.lowrank_dynamic_convolution(TOKENS, Z, U[:, 1:]), ValueError, "U must be [R, W * D] with D = 6; got [2, 23]"),
    "z": (lambda: dynamic_conv1d.lowrank_dynamic_convolution(TOKENS, Z[:1], U), ValueError, "z must be [B = 2, T = 9, R]; got [1, 9, 2]"),
    "Inkling2 parameters": (
        lambda: inkling2.dynamic_short_convolution({"weight": U}, TOKENS, TOKENS), ValueError, "parameters must have static_weight and weight_proj.weight; got weight",
    ),
    "Inkling2 input": (
        lambda: inkling2.dynamic_short_convolution(PARAMETERS, TOKENS, TOKENS), ValueError, "weight_proj.weight must be [H*W, C = 6]; got [12, 5]",
    ),
    "Inkling2 projection": (lambda: inkling2.import_projection(U.T, 5), ValueError, "weight must be [H * W, C] with W = 5; got [24, 2]"),
    "not a Conv1d": (lambda: conv1d.import_module(nn.Linear(2, 2)), TypeError, "conv must be an nn.Conv1d; got Linear"),
    "groups": (lambda: conv1d.import_module(nn.Conv1d(D, D, W)), ValueError, "conv must have groups = 6 with in_channels = 6; got 1"),
    "channels": (lambda: conv1d.import_module(nn.Conv1d(D, 2 * D, W, groups=D)), ValueError, "conv must have out_channels = 6 with in_channels = 6; got 12"),
    "stride": (lambda: conv1d.import_module(nn.Conv1d(D, D, W, groups=D, stride=2)), ValueError, "conv must have stride = (1,)"),
    "dilation": (lambda: conv1d.import_module(nn.Conv1d(D, D, W, groups=D, dilation=2)), ValueError, "conv must have dilation = (1,)"),
    "padding mode": (lambda: conv1d.import_module(nn.Conv1d(D, D, W, groups=D, padding=1, padding_mode="circular")), ValueError, "conv must have padding_mode = zeros"),
    "dense weight": (lambda: conv1d.import_filters(torch.randn(D, D, W)), ValueError, "weight must be [D, 1, W]; got [6, 6, 4]"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISUSES)
def test_misuse_is_explained(case):
    call, error, message = MISUSES[case]
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_misuse_leaves_states_alone():
    state = STATE.clone()
    for options in ({"bias": torch.randn(5)}, {"activation": "relu"}, {"conv_state_indices": IDS[0]}):
        with pytest.raises(ValueError, match="must be"):
            cc.causal_conv1d_update(X, state, WEIGHT, **options)
    assert torch.equal(state, STATE)


def test_import_is_light():
    code = "import sys, dynaconv; dynaconv.interop.fla; print([m for m in ('transformers', 'numba', 'triton') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
