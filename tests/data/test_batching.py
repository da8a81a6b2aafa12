"""Batches by token count."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynaconv.data.batching import Seq2SeqCollator, TokenBatchSampler


@settings(deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=200),
    max_tokens=st.integers(40, 400), multiple_of=st.integers(1, 5), epoch=st.integers(0, 3), shuffle=st.booleans(),
)  # fmt: skip
def test_batches_cover_everything_within_their_cost(lengths, max_tokens, multiple_of, epoch, shuffle):
    source, target = np.array(lengths).T
    sampler = TokenBatchSampler(source, target, max_tokens, shuffle=shuffle, seed=3, multiple_of=multiple_of)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    assert len(batches) % multiple_of == 0
    distinct = {tuple(batch) for batch in batches}
    assert sorted(i for batch in distinct for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert max(source[batch].max(), target[batch].max()) * len(batch) <= max_tokens
    assert list(sampler) == batches


def test_epochs_differ_and_seeds_differ():
    lengths = np.arange(1, 200) % 20 + 1
    orders = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        sampler = TokenBatchSampler(lengths, lengths, 100, seed=seed)
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert len({len(order) for order in orders}) == 1


def test_errors():
    with pytest.raises(ValueError, match="a sentence has 50 tokens but a batch may have 40"):
        TokenBatchSampler(np.array([3, 50]), np.array([4, 4]), 40)
    with pytest.raises(ValueError, match="no sentences"):
        TokenBatchSampler(np.array([]), np.array([]), 40)


def test_collator():
    pairs = [
        {"input_ids": np.array([5, 6, 2], np.uint16), "labels": np.array([7, 2], np.uint16)},
        {"input_ids": np.array([8, 2], np.uint16), "labels": np.array([9, 10, 2], np.uint16)},
    ]
    batch = Seq2SeqCollator()(pairs)
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[5, 6, 2], [8, 2, 1]],
        "attention_mask": [[1, 1, 1], [1, 1, 0]],
        "decoder_input_ids": [[2, 7, 2], [2, 9, 10]],
        "labels": [[7, 2, -100], [9, 10, 2]],
    }
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())
