"""flash-linear-attention against its definition, written in plain PyTorch."""

from itertools import pairwise

import pytest
import torch

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
        oracle, randn(B, T, D), randn(D, W), randn(D), randn(B, T, D), randn(B, D, W),
    )  # fmt: skip


@pytest.mark.parametrize("ends", [[0, T], [0, 1, 6, 6, 8, T]])
def test_packed(backend, ends):
    cu_seqlens = torch.tensor(ends)

    def oracle(x, w, s):
        parts = [x[:, a:b].transpose(1, 2) for a, b in pairwise(ends)]
        y = [conv(p, w, past=s[n : n + 1, :, 1:]) if p.shape[2] else p for n, p in enumerate(parts)]
        return torch.cat(y, 2).transpose(1, 2), torch.cat([last(p, W, s[n : n + 1]) for n, p in enumerate(parts)])

    assert_same(
        lambda x, w, s: fla.causal_conv1d(x, w, initial_state=s, output_final_state=True, cu_seqlens=cu_seqlens),
        oracle, randn(1, T, D), randn(D, W), randn(len(ends) - 1, D, W),
    )  # fmt: skip


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
