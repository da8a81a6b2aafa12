"""Sequences of recall: what they hold, and that every label follows from what came before."""

from collections import Counter

import numpy as np
import pytest

from dynaconv.data.batching import NO_LABEL
from dynaconv.tasks.recall.generators import compositional, fuzzy, mqar, variable_key

COUNT = 200


def rng(seed=1):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("make", [mqar, compositional, variable_key, fuzzy])
def test_a_seed_decides_everything(make):
    first, again, other = make(3, rng()), make(3, rng()), make(3, rng(2))
    assert all((a == b).all() for a, b in zip(first, again))
    assert not (first[0] == other[0]).all()
    assert all(part.dtype == np.int64 for part in first)


@pytest.mark.parametrize(("length", "pairs"), [(64, 4), (32, 8)])
def test_mqar(length, pairs):
    inputs, labels = mqar(COUNT, rng(), length=length, pairs=pairs, vocab_size=512)
    assert inputs.shape == labels.shape == (COUNT, length)
    for row, asked in zip(inputs, labels):
        keys, values = row[: 2 * pairs : 2], row[1 : 2 * pairs : 2]
        assert len(set(keys)) == len(set(values)) == pairs
        assert ((keys >= 1) & (keys < 256)).all()
        assert ((values >= 256) & (values < 512)).all()
        places = np.flatnonzero(asked != NO_LABEL)
        assert len(places) == pairs
        assert (places >= 2 * pairs).all()
        assert (places % 2 == 0).all()
        value_of = dict(zip(keys, values))
        assert [value_of[row[place]] for place in places] == asked[places].tolist()


def test_distances_of_mqar_follow_the_power_law():
    _, near = mqar(2000, rng(), length=66, pairs=1, vocab_size=64)
    _, even = mqar(2000, rng(), length=66, pairs=1, vocab_size=64, power=1.0)
    first = [Counter(np.argwhere(labels != NO_LABEL)[:, 1].tolist())[2] / 2000 for labels in (near, even)]
    weights = np.arange(1, 33.0) ** -0.99
    assert first[0] == pytest.approx(weights[0] / weights.sum(), abs=0.03)
    assert first[1] == pytest.approx(1 / 32, abs=0.02)


def test_without_random_tokens_the_rest_is_zero():
    inputs, _labels = mqar(5, rng(), vocab_size=64, random_non_queries=False)
    assert ((inputs != 0).sum(1) == 12).all()


def test_compositional_keys_need_both_tokens():
    inputs, labels = compositional(COUNT, rng(), length=64, pairs=9, vocab_size=150)
    for row, asked in zip(inputs, labels):
        firsts, seconds, values = row[:27:3], row[1:27:3], row[2:27:3]
        assert len(set(zip(firsts, seconds))) == 9
        assert sorted(Counter(firsts).values()) == sorted(Counter(seconds).values()) == [3, 3, 3]
        assert max(firsts) < 50 <= min(seconds)
        assert max(seconds) < 100 <= min(values)
        places = np.flatnonzero(asked != NO_LABEL)
        value_of = dict(zip(zip(firsts, seconds), values))
        assert [value_of[row[place - 1], row[place]] for place in places] == asked[places].tolist()
        assert len(places) == 9


def test_variable_keys():
    classes, size, pairs = 3, 6, 12
    inputs, labels = variable_key(COUNT, rng(), classes=classes, class_size=size, values=24, pairs=pairs)
    lengths = Counter()
    for row, asked in zip(inputs, labels):
        tokens, places = row[row > 0].tolist(), np.flatnonzero(asked != NO_LABEL)
        assert (row[len(tokens) :] == 0).all()
        read, key = [], []
        for token in tokens:
            if token > classes * size:
                # The class of the last token says how long the key is.
                assert len(key) == (key[-1] - 1) // size + 1
                read.append((tuple(key), token))
                key = []
            else:
                key.append(token)
        assert len(read) == 2 * pairs
        assert len(dict(read[:pairs])) == pairs
        assert sorted(read[:pairs]) == sorted(read[pairs:])
        assert asked[places].tolist() == [value for _, value in read[pairs:]] == row[places + 1].tolist()
        lengths.update(len(key) for key, _ in read[:pairs])
    total = lengths.total()
    assert lengths[3] / total == pytest.approx(1 / 3, abs=0.04)
    assert lengths[1] / total < 1 / 3  # there are 6 keys of one token only, and keys are distinct


@pytest.mark.parametrize("training", [True, False])
def test_fuzzy_recall(training):
    inputs, labels = fuzzy(COUNT, rng(), training=training)
    assert inputs.shape == labels.shape == (COUNT, 128)
    if training:
        assert (labels[:, :-1] == inputs[:, 1:]).all()
        return
    for row, asked in zip(inputs, labels):
        tokens = row[row != 15].tolist()
        assert (row[: len(row) - len(tokens)] == 15).all()
        places = np.flatnonzero(asked[:-1] != NO_LABEL)
        assert (asked[places] == row[places + 1]).all()
        assert asked[-1] != NO_LABEL
        # Read as keys of three tokens below 7 and values behind them: labelled values are those of keys seen before.
        known, at, start, asked_values = {}, 0, len(row) - len(tokens), []
        tokens.append(int(asked[-1]))
        while at < len(tokens):
            key, end = tuple(tokens[at : at + 3]), at + 3
            assert max(key) < 7
            while end < len(tokens) and tokens[end] >= 7:
                end += 1
            value = tuple(tokens[at + 3 : end])
            if key in known:
                assert known[key] == value
                asked_values += range(start + at + 2, start + end - 1)
            known[key], at = value, end
        assert np.flatnonzero(asked != NO_LABEL).tolist() == asked_values


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (mqar, {"length": 15}, "at least 4 x pairs = 16; got 15"),
        (mqar, {"vocab_size": 8, "pairs": 4}, "vocab_size is too small for 4 different tokens of 1..3"),
        (compositional, {"pairs": 5}, "pairs must be a square"),
        (compositional, {"pairs": 16}, "at least 6 x pairs = 96; got 64"),
        (variable_key, {"classes": 1, "pairs": 6}, "too few for 6 pairs"),
        (fuzzy, {"length": 20}, "length must be at least 24"),
    ],
)
def test_sizes_that_do_not_fit(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(2, rng(), **options)
