"""flash-linear-attention against its definition, written in plain PyTorch."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dynaconv
from dynaconv.interop import fla

from .definitions import B, D, T, W, assert_same, conv, last, randn


@pytest.mark.parametrize("activation", [None, "silu", "swish"])
def test_everything(backend, activation):
    def oracle(x, w, b, r, s):
        x, size = x.transpose(1, 2), w.shape[1]
        y = conv(x, w, b, s[..., 1:], activation)
        return y.transpose(1, 2) + r, last(x, size, s)

    assert_same(
        lambda x, w, b, r, s: fla.causal_conv1d(x, w, b, r, s, True, activation),
        oracle,
        randn(B, T, D),
        randn(D, W),
        randn(D),
        randn(B, T, D),
        randn(B, D, W),
    )


@pytest.mark.parametrize("ends", [[0, T], [0, 1, 6, 6, 8, T]])
def test_packed(backend, ends):
    cu_seqlens = torch.tensor(ends)

    def oracle(x, w, s):
        parts = [x[:, a:b].transpose(1, 2) for a, b in pairwise(ends)]
        y = [conv(p, w, past=s[n : n + 1, :, 1:]) if p.shape[2] else p for n, p in enumerate(parts)]
        return torch.cat(y, 2).transpose(1, 2), torch.cat([last(p, W, s[n : n + 1]) for n, p in enumerate(parts)])

    assert_same(
        lambda x, w, s: fla.causal_conv1d(x, w, initial_state=s, output_final_state=True, cu_seqlens=cu_seqlens),
        oracle,
        randn(1, T, D),
        randn(D, W),
        randn(len(ends) - 1, D, W),
    )


def test_no_state(backend):
    x, weight = torch.randn(B, T, D), torch.randn(D, W)
    y, state = fla.causal_conv1d(x, weight, backend="triton")
    assert state is None
    torch.testing.assert_close(y, conv(x.transpose(1, 2), weight).transpose(1, 2), rtol=1e-4, atol=1e-5)
    state = fla.causal_conv1d(x[:, :2], weight, output_final_state=True)[1]
    assert torch.equal(state, last(x[:, :2].transpose(1, 2), W))
    assert state.is_contiguous()


def test_chunks_are_the_whole(backend):
    x, weight, state, pieces = torch.randn(B, T, D), torch.randn(D, W), None, []
    for chunk in x.split([2, 1, 4, 2], dim=1):
        y, state = fla.causal_conv1d(chunk, weight, initial_state=state, output_final_state=True)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, 1), fla.causal_conv1d(x, weight)[0])


def test_states_there_and_back(backend):
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


def test_dtype_of_the_output(backend):
    x, residual = torch.randn(B, T, D).bfloat16(), torch.randn(B, T, D)
    assert fla.causal_conv1d(x, torch.randn(D, W), residual=residual)[0].dtype == torch.bfloat16


def test_heads(backend):
    """[B, T, H, K] is [B, T, H * K]."""
    x, weight, residual = randn(B, T, 3, 2), randn(D, W), randn(B, T, 3, 2)
    assert_same(
        lambda x, w, r: fla.causal_conv1d(x, w, None, r, None, True, "silu", head_dim=2),
        lambda x, w, r: (
            F.silu(conv(x.flatten(2).transpose(1, 2), w).transpose(1, 2)).view_as(x) + r,
            last(x.flatten(2).transpose(1, 2), W),
        ),
        x,
        weight,
        residual,
    )


def test_seq_idx(backend):
    rows = torch.tensor([[0] * 4 + [1] * 5, [3] * 1 + [4] * 8])
    x, weight = torch.randn(B, T, D), torch.randn(D, W)
    expected = [
        fla.causal_conv1d(x[n : n + 1], weight, cu_seqlens=torch.tensor([0, end, T]))[0] for n, end in ((0, 4), (1, 1))
    ]
    torch.testing.assert_close(fla.causal_conv1d(x, weight, seq_idx=rows)[0], torch.cat(expected))


@pytest.mark.parametrize("shape", [(3, D), (3, 1, D), (1, 3, D), (3, 1, 2, 3)])
def test_update(backend, shape):
    x, cache, weight, bias, residual = (
        torch.randn(shape),
        torch.randn(3, D, W),
        randn(D, W),
        randn(D),
        torch.randn(shape),
    )
    tokens, before = x.reshape(3, D, 1), cache.clone()
    y, same = fla.causal_conv1d_update(x, cache, residual, weight, bias, "silu")
    assert same is cache
    assert not y.requires_grad
    expected = conv(tokens, weight, bias, before[..., 1:], "silu").view(shape) + residual
    torch.testing.assert_close(y, expected.detach(), rtol=1e-4, atol=1e-5)
    assert torch.equal(cache, last(tokens, W, before))


class TestShortConvolution:
    def module(self):
        return fla.ShortConvolution(D, W, bias=True)

    def test_gradients(self, backend):
        layer = self.module()
        assert_same(
            lambda x, r, s, w, b: layer(x, r, cache=s, output_final_state=True),
            lambda x, r, s, w, b: (
                conv(x.transpose(1, 2), w[:, 0], b, s[..., 1:], "silu").transpose(1, 2) + r,
                last(x.transpose(1, 2), W, s),
            ),
            randn(B, T, D),
            randn(B, T, D),
            randn(B, D, W),
            *layer.parameters(),
        )
        assert layer.state_size == D * W

    def test_mask(self, backend):
        layer, x, mask = self.module(), torch.randn(B, T, D), torch.ones(B, T)
        mask[0, :3], before = 0, x.clone()
        torch.testing.assert_close(layer(x, mask=mask)[0], layer(x * mask[..., None])[0])
        assert torch.equal(x, before)
        with pytest.raises(ValueError, match="either mask or cu_seqlens"):
            layer(x[:1], mask=mask[:1], cu_seqlens=torch.tensor([0, T]))

    def test_decoding(self, backend):
        """The cache is overwritten by single tokens without gradients, and by nothing else."""
        layer, x = self.module(), torch.randn(B, T, D)
        whole = layer(x)[0].detach()
        with torch.no_grad():
            y, cache = layer(x[:, :4], output_final_state=True)
            pieces = [y]
            for t in range(4, T):
                y, after = layer(x[:, t : t + 1], cache=cache, output_final_state=True)
                assert after is cache
                pieces.append(y)
        torch.testing.assert_close(torch.cat(pieces, 1), whole)
        before = cache.clone()
        assert layer(x[:, :1], cache=cache, output_final_state=True)[1] is not cache
        with torch.no_grad():
            layer(x[:, :2], cache=cache)
        assert torch.equal(cache, before)
        layer.step(x[:1, :B], None, cache, cu_seqlens=torch.arange(B + 1))
        assert torch.equal(cache[..., -1], x[0, :B])

    def test_weights_of_a_conv1d(self):
        module = nn.Conv1d(D, D, W, groups=D)
        self.module().load_state_dict(module.state_dict())
        with pytest.raises(ValueError, match="backend must be one of 'triton', 'cuda'; got 'mix'"):
            fla.ShortConvolution(D, W, backend="mix")
        with pytest.raises(ValueError, match="activation must be None"):
            fla.ShortConvolution(D, W, activation="gelu")
