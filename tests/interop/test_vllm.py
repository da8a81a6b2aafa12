"""vLLM's functions on rows of a cache against causal-conv1d's definition, stream by stream."""

from itertools import pairwise

import pytest
import torch

from dynaconv.interop import vllm

from .definitions import D, W, conv, last

ENDS, ROWS, CONTINUED = [0, 5, 6, 6, 8, 11], [3, 0, 1, -1, 5], [True, False, False, True, True]


@pytest.mark.parametrize("pad", [-1, 7])
@pytest.mark.parametrize("slots", [W - 1, W + 1])
def test_chunks_of_streams(backend, slots, pad):
    """Some continue what is in their row and others do not; one is padding, one is empty, and tokens follow the last."""
    x, weight, bias = torch.randn(D, 13), torch.randn(D, W, requires_grad=True), torch.randn(D)
    cache = torch.randn(6, D, slots)
    expected, out = cache.clone(), torch.zeros(D, 13)
    for (start, end), row, has in zip(pairwise(ENDS), ROWS, CONTINUED, strict=True):
        if row >= 0 and end > start:
            past = expected[row, :, : W - 1] * has
            out[:, start:end] = conv(x[None, :, start:end], weight, bias, past[None], "silu")[0].detach()
            expected[row, :, : W - 1] = last(x[None, :, start:end], W - 1, past[None])[0]
    rows = torch.tensor([pad if row < 0 else row for row in ROWS], dtype=torch.int32)
    y = vllm.causal_conv1d_fn(
        x, weight, bias, cache, torch.tensor(ENDS, dtype=torch.int32), rows, torch.tensor(CONTINUED), "silu", pad
    )
    assert not y.requires_grad
    torch.testing.assert_close(y, out, rtol=1e-4, atol=1e-5)
    assert torch.equal(cache, expected)


def test_nothing_continues_unless_said(backend):
    x, weight, cache = torch.randn(D, 6), torch.randn(D, W), torch.randn(2, D, W - 1)
    y = vllm.causal_conv1d_fn(x, weight, None, cache, torch.tensor([0, 2, 6]), activation=None)
    expected = torch.cat([conv(part[None], weight)[0] for part in x.split([2, 4], 1)], 1)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(cache[0], last(x[None, :, :2], W - 1)[0])


@pytest.mark.parametrize("length", [None, 1, 3])
def test_update(backend, length):
    x = torch.randn(3, D) if length is None else torch.randn(3, D, length)
    weight, cache, rows = torch.randn(D, W), torch.randn(5, D, W - 1), torch.tensor([4, -1, 0])
    tokens, before = x.view(3, D, -1), cache.clone()
    y = vllm.causal_conv1d_update(x, cache, weight, activation=True, conv_state_indices=rows)
    expected = conv(tokens, weight, past=before[rows], activation="silu")
    expected[1] = 0
    torch.testing.assert_close(y, expected.view(x.shape), rtol=1e-4, atol=1e-5)
    assert torch.equal(cache[[4, 0]], last(tokens[[0, 2]], W - 1, before[[4, 0]]))
    assert torch.equal(cache[1:4], before[1:4])
    again, ends = before.clone(), torch.arange(4) * tokens.shape[2]
    packed = vllm.causal_conv1d_update(
        tokens.transpose(1, 2).reshape(-1, D), again, weight, None, "silu", rows, query_start_loc=ends
    )
    torch.testing.assert_close(packed.view(3, -1, D).transpose(1, 2), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(again, cache)


def test_misuse():
    x, weight, cache, ends = torch.randn(D, 6), torch.randn(D, W), torch.randn(2, D, W - 1), torch.tensor([0, 2, 6])
    before = cache.clone()
    cases = [
        ({"has_initial_state": torch.ones(2)}, TypeError, "has_initial_state must be a tensor of booleans"),
        ({"has_initial_state": torch.ones(3, dtype=torch.bool)}, ValueError, "has_initial_state must be .N = 2."),
        ({"cache_indices": torch.tensor([0, 0])}, ValueError, "cache_indices must be different rows of conv_states"),
        ({"cache_indices": torch.tensor([0, 2])}, ValueError, "cache_indices must be different rows of conv_states"),
        ({"query_start_loc": torch.tensor([0, 2, 7])}, ValueError, "query_start_loc must end at most at 6"),
        ({"conv_states": cache[..., 1:]}, ValueError, "conv_states must hold W - 1 = 3 inputs or more; got 2"),
        ({"activation": "relu"}, ValueError, "activation"),
    ]
    arguments = {"x": x, "weight": weight, "bias": None, "conv_states": cache, "query_start_loc": ends}
    for changed, error, message in cases:
        with pytest.raises(error, match=message):
            vllm.causal_conv1d_fn(**arguments | changed)
    assert torch.equal(cache, before)
