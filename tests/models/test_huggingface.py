"""Padding and packed sequences out of the arguments of a Hugging Face decoder."""

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, StaticCache

from dynaconv.models.huggingface import find_sequences

SHAPE = torch.Size((2, 4))
CONFIG = LlamaConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1)
LEFT = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])


def full(past=0, cache=None):
    cache = cache or DynamicCache(config=CONFIG)
    if past:
        cache.update(torch.zeros(2, 2, past, 4), torch.zeros(2, 2, past, 4), 0)
    return cache


def pairs(mask, keys=4, past=0):
    """[B, 1, T, keys] of a causal mask with padding."""
    allowed = torch.zeros(2, 1, 4, keys, dtype=torch.bool)
    for t in range(4):
        allowed[:, 0, t, : past + t + 1] = mask[:, : past + t + 1].bool()
    return allowed


def additive(allowed):
    return torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)


SEPARATE = torch.ones(2, 1, 4, 4, dtype=torch.bool).tril()
SEPARATE[0, 0, 2:, :2] = False  # the first row is two sequences of two tokens
LONG = torch.cat([torch.ones(2, 3), LEFT, torch.zeros(2, 5)], 1)

MASKS = {
    "none": (None, None, None),
    "all tokens": (torch.ones(2, 4), None, None),
    "padding": (LEFT, None, LEFT),
    "with a cache": (torch.cat([torch.ones(2, 3), LEFT], 1), full(3), LEFT),
    "longer than the tokens": (LONG, full(3), LEFT),
    "longer, static": (LONG, full(3, StaticCache(config=CONFIG, max_cache_len=12)), LEFT),
    "pairs": (pairs(LEFT), None, LEFT),
    "added pairs": (additive(pairs(LEFT)), None, LEFT),
    "pairs with a bias": (additive(pairs(LEFT)) - 1, None, LEFT),
    "pairs, static": (pairs(LONG, 12, 3), full(3, StaticCache(config=CONFIG, max_cache_len=12)), LEFT),
    "by kind of layer": ({"sliding_attention": None, "full_attention": pairs(LEFT)}, None, LEFT),
}


@pytest.mark.parametrize("case", MASKS)
def test_padding(case):
    given, cache, expected = MASKS[case]
    shape, mask, cu_seqlens, _ = find_sequences(SHAPE, given, None, cache, None)
    assert shape == SHAPE
    assert cu_seqlens is None
    assert mask is None if expected is None else torch.equal(mask != 0, expected != 0)


RESTART = torch.tensor([[0, 1, 0, 1], [0, 1, 2, 3]])
PACKED = {
    "positions": (None, RESTART, [0, 2, 4, 8]),
    "no restart": (None, torch.arange(4).expand(2, 4), None),
    "one row of positions": (None, RESTART[:1], [0, 2, 4, 6, 8]),
    "positions of three axes": (None, RESTART.expand(3, 2, 4), None),
    "positions of text and three axes": (None, RESTART.expand(4, 2, 4), [0, 2, 4, 8]),
    "positions beside a mask": (torch.ones(2, 4), RESTART, None),
    "pairs": (SEPARATE, None, [0, 2, 4, 8]),
    "added pairs": (additive(SEPARATE), None, [0, 2, 4, 8]),
}


@pytest.mark.parametrize("case", PACKED)
def test_packed_sequences(case):
    mask, positions, expected = PACKED[case]
    result = find_sequences(SHAPE, mask, positions, None, None)
    assert result.mask is None
    assert expected == (None if result.cu_seqlens is None else result.cu_seqlens.tolist())


def test_what_cannot_be_is_refused():
    ends = torch.tensor([0, 4, 8])
    assert find_sequences(SHAPE, None, None, full(), ends).cu_seqlens is ends
    with pytest.raises(ValueError, match="packed sequences cannot continue those of a cache; the cache holds 3"):
        find_sequences(SHAPE, None, None, full(3), ends)
    with pytest.raises(
        ValueError, match=r"every row must begin a sequence: cu_seq_lens_q must have \[0, 4, 8\]; got \[0, 2, 8\]"
    ):
        find_sequences(SHAPE, None, None, None, torch.tensor([0, 2, 8]))
    with pytest.raises(ValueError, match="packed sequences have no padding"):
        find_sequences(SHAPE, LEFT, None, None, ends)
    with pytest.raises(ValueError, match="packed sequences cannot continue"):
        find_sequences(SHAPE, torch.cat([torch.ones(2, 1, 4, 3).bool(), SEPARATE], 3), None, full(3), None)
    with pytest.raises(ValueError, match=r"attention_mask must be \[B, past \+ T\] with past = 3, T = 4; got \[2, 4\]"):
        find_sequences(SHAPE, LEFT, None, full(3), None)
    with pytest.raises(ValueError, match=r"must be \[B, past \+ T\] or \[B, 1, T, keys\]; got \[2, 4, 4\]"):
        find_sequences(SHAPE, SEPARATE[:, 0], None, None, None)
    with pytest.raises(TypeError, match="must be boolean, True where a token may look.*; got torch.int64"):
        find_sequences(SHAPE, SEPARATE.long(), None, None, None)
    with pytest.raises(TypeError, match="attention_mask must be a tensor.*got str"):
        find_sequences(SHAPE, "causal", None, None, None)
