"""Batches by token count."""

import subprocess
import sys
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dynaconv.data.batching import Seq2SeqCollator, TokenBatchSampler, in_order, oldest_first

LENGTHS = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=120)


def make(lengths, **options) -> TokenBatchSampler:
    arrays = SimpleNamespace(lengths=dict(zip(("source", "target"), np.array(lengths, np.int32).T, strict=True)))
    return TokenBatchSampler.of(arrays, **{"max_tokens": 64, **options})


@given(LENGTHS, st.integers(40, 300), st.booleans(), st.integers(0, 5))
def test_every_sentence_once_within_the_bound(lengths, max_tokens, shuffle, epoch):
    sampler = make(lengths, max_tokens=max_tokens, shuffle=shuffle)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert max(max(lengths[i]) for i in batch) * len(batch) <= max_tokens


@given(st.lists(st.none() | st.integers(0, 90), max_size=120), st.integers(1, 60), st.integers(1, 5))
def test_the_oldest_item_is_never_left_behind(lengths, max_tokens, ahead):
    read = []
    items = (length if length is None else (len(read), read.append(length) or length) for length in lengths)
    done = set()
    for batch in oldest_first(items, lambda item: item[1], max_tokens, ahead):
        waiting = set(range(len(read))) - done
        numbers = [number for number, _ in batch]
        assert min(waiting) in numbers
        assert set(numbers) <= waiting
        assert numbers == sorted(numbers)
        assert len(batch) == 1 or max(length for _, length in batch) * len(batch) <= max_tokens
        done.update(numbers)
        others = sum(1 + read[number] for number in waiting - {len(read) - 1})
        assert others <= ahead * max_tokens  # before the last one was read, there was room
    assert len(done) == len([length for length in lengths if length is not None])


def test_what_has_come_is_done_before_more_is_read():
    read = []
    items = (read.append(item) or item for item in [3, 1, None, 2])
    batches = oldest_first(items, lambda item: item, 100)
    assert next(batches) == [3, 1]
    assert read == [3, 1, None]
    assert list(batches) == [[2]]


@given(st.lists(st.integers(0, 90), max_size=120), st.integers(1, 60))
def test_results_come_in_the_order_of_the_items(lengths, max_tokens):
    parts = list(in_order(lengths, lambda batch: [-length for length in batch], lambda length: length, max_tokens))
    assert [result for part in parts for result in part] == [-length for length in lengths]
    assert all(parts)  # something with every batch


def test_similar_lengths_share_a_batch():
    lengths = np.random.default_rng(0).geometric(0.05, 4000).tolist()
    cost = sum(max(batch) * len(batch) for batch in oldest_first(lengths, lambda length: length, 800))
    unsorted = [lengths[i : i + 20] for i in range(0, len(lengths), 20)]
    assert cost < 1.1 * sum(lengths)
    assert sum(max(batch) * len(batch) for batch in unsorted) > 2 * sum(lengths)


@given(LENGTHS, st.integers(1, 9), st.integers(0, 3))
def test_multiple_of_repeats_whole_batches_and_drops_nothing(lengths, multiple_of, epoch):
    plain, padded = make(lengths), make(lengths, multiple_of=multiple_of)
    plain.set_epoch(epoch)
    padded.set_epoch(epoch)
    once, batches = Counter(map(tuple, plain)), Counter(map(tuple, padded))
    assert batches.total() == len(padded) == -(-len(plain) // multiple_of) * multiple_of
    assert batches.keys() == once.keys()
    assert max(batches.values()) <= -(-len(padded) // len(plain))


@given(LENGTHS, st.integers(0, 3))
def test_seed_and_epoch_decide(lengths, epoch):
    first, second = make(lengths, seed=3), make(lengths, seed=3)
    list(second)  # earlier epochs leave no trace
    first.set_epoch(epoch)
    second.set_epoch(epoch)
    assert list(first) == list(second)
    assert len(first) == len(make(lengths, seed=4))


def test_epochs_and_seeds_differ():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 20, (400, 2))
    sampler, other = make(lengths, seed=1), make(lengths, seed=2)
    first = list(sampler)
    assert first != list(other)
    sampler.set_epoch(1)
    second = list(sampler)
    assert sorted(map(len, first)) == sorted(map(len, second))
    assert set(map(frozenset, first)) != set(map(frozenset, second)), "only the order of the batches changed"


def test_without_shuffling_short_sentences_come_first_in_every_epoch():
    sampler = make([(5, 1), (1, 2), (3, 3), (1, 2)], max_tokens=5, shuffle=False)
    first = list(sampler)
    sampler.set_epoch(1)
    assert first == list(sampler) == [[1, 3], [2], [0]]


def test_a_sentence_over_the_limit_is_an_error_that_names_both():
    with pytest.raises(ValueError, match=r"a sequence has 41 tokens but a batch may have 40: raise max_tokens"):
        make([(3, 41)], max_tokens=40)
    assert list(make([(3, 40)], max_tokens=40)) == [[0]]


def test_no_sentences():
    with pytest.raises(ValueError, match="no sequences"):
        TokenBatchSampler([], 10)


def test_collator_pads_and_shifts():
    pairs = [
        {"source": np.array([7, 2], np.uint16), "target": np.array([8, 9, 2], np.uint16)},
        {"source": np.array([4, 5, 6, 2], np.uint16), "target": np.array([5, 2], np.uint16)},
    ]
    batch = Seq2SeqCollator()(pairs)
    assert {name: value.tolist() for name, value in batch.items()} == {
        "input_ids": [[7, 2, 1, 1], [4, 5, 6, 2]],
        "attention_mask": [[1, 1, 0, 0], [1, 1, 1, 1]],
        "decoder_input_ids": [[2, 8, 9], [2, 5, 2]],
        "labels": [[8, 9, 2], [5, 2, -100]],
    }
    assert {value.dtype for value in batch.values()} == {torch.int64}


def test_collator_masks_by_length_not_by_id():
    batch = Seq2SeqCollator()([{"source": [1, 2], "target": [1, 2]}, {"source": [2], "target": [2]}])
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert batch["labels"].tolist() == [[1, 2], [2, -100]]


def test_importing_the_package_is_cheap():
    code = "import sys, dynaconv.data.batching, dynaconv.data.sources, dynaconv.data.splits; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"transformers", "tokenizers", "datasets"} & set(result.stdout.split())
