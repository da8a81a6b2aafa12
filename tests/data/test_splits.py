"""Near-duplicates stay on one side of a split."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynaconv.data import DataConfig, ParallelText, load_parallel
from dynaconv.data.splits import hold_out, near_duplicate_groups, near_duplicate_key
from tests.conftest import write_tsv

KEYS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=3, max_size=40)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Das Paket libfoo-dev enthält 12 Dateien.", "das Paket libbar64 enthält 7 Dateien"),
        ("„Bibliothek“ (Version 2.1)", "Bibliothek (version 3)"),
        ("हिन्दी भाषा।", "हिन्दी भाषा"),
    ],
)
def test_near_duplicates_share_a_key(first, second):
    assert near_duplicate_key(first) == near_duplicate_key(second)


@pytest.mark.parametrize(
    ("first", "second"), [("rote Hunde", "rote Katzen"), ("12.5", "13"), ("हिन्दी", "भाषा"), ("?", "!")]
)
def test_other_texts_do_not(first, second):
    assert near_duplicate_key(first) != near_duplicate_key(second)


@given(KEYS)
def test_groups_are_the_connected_components(pairs):
    # Words made of letters only, so that equal keys mean equal words.
    text = ParallelText(["s" + "x" * a for a, _ in pairs], ["t" + "x" * b for _, b in pairs])
    groups = near_duplicate_groups(text)
    expected = [{i} for i in range(len(pairs))]
    for _ in pairs:  # spread labels until nothing changes
        for i, (a, b) in enumerate(pairs):
            for j, (c, d) in enumerate(pairs):
                if a == c or b == d:
                    expected[i] |= expected[j]
    assert [{j for j, other in enumerate(groups) if other == group} for group in groups] == expected


@given(st.lists(st.integers(0, 15), min_size=1, max_size=60), st.integers(0, 3), st.integers(0, 3), st.integers(0, 9))
def test_held_out_groups_are_nowhere_else(groups, first, second, seed):
    if 0 < len(set(groups)) <= first + second:
        with pytest.raises(ValueError, match="cannot hold out"):
            hold_out(groups, [first, second], seed)
        return
    held_out, rest = hold_out(groups, [first, second], seed)
    assert list(map(len, held_out)) == [first, second]
    drawn = [groups[i] for indices in held_out for i in indices]
    assert len(set(drawn)) == len(drawn)
    assert rest == [i for i, group in enumerate(groups) if group not in drawn]
    assert (held_out, rest) == hold_out(groups, [first, second], seed)


def repetitive_pairs(count: int = 400) -> list[tuple[str, str]]:
    """Sentences from few templates, each with a number or name of its own."""
    rng = random.Random(0)
    letters = "abcdefghijklmnopqrst"
    words = ["".join(rng.choices(letters, k=6)) for _ in range(count // 4)]
    return [(f"{w} kleine{n}", f"the {w[::-1]} small-{n} {n}") for n, w in enumerate(words * 4)]


def shared_keys(splits: dict[str, ParallelText]) -> int:
    train = {near_duplicate_key(line) for lines in splits["train"] for line in lines}
    return sum(near_duplicate_key(line) in train for name in ("valid", "test") for line in splits[name].source)


def test_no_near_duplicates_across_splits(tmp_path):
    train = str(write_tsv(tmp_path / "train.tsv", repetitive_pairs()))
    config = DataConfig(train=train, valid_size=10, test_size=10)
    splits = load_parallel(config)
    assert [len(text.source) for text in splits.values()] == [400 - 4 * 20, 10, 10]
    assert list(splits) == ["train", "valid", "test"]
    assert shared_keys(splits) == 0
    assert splits == load_parallel(config)
    config.seed = 2
    assert splits["valid"] != load_parallel(config)["valid"]


def test_the_check_above_finds_near_duplicates_where_they_are_kept(tmp_path):
    train = str(write_tsv(tmp_path / "train.tsv", repetitive_pairs()))
    splits = load_parallel(DataConfig(train=train, valid_size=10, test_size=10, near_duplicates=True))
    assert len(splits["train"].source) == 380
    assert shared_keys(splits) > 10


def test_training_text_loses_near_duplicates_of_given_files(tmp_path):
    pairs = repetitive_pairs()
    train, valid = write_tsv(tmp_path / "train.tsv", pairs), write_tsv(tmp_path / "valid.tsv", pairs[:3])
    config = DataConfig(train=str(train), valid=str(valid), test_size=5)
    splits = load_parallel(config)
    assert list(zip(*splits["valid"], strict=True)) == pairs[:3]
    assert len(splits["train"].source) == 400 - 3 * 4 - 5 * 4
    assert shared_keys(splits) == 0


def test_nothing_but_near_duplicates(tmp_path):
    path = str(write_tsv(tmp_path / "train.tsv", repetitive_pairs()))
    with pytest.raises(ValueError, match=r"all 400 training pairs nearly repeat data\.valid or data\.test"):
        load_parallel(DataConfig(train=path, valid=path, test=path))
    with pytest.raises(ValueError, match="cannot hold out 1,000 of 100 pairs"):
        load_parallel(DataConfig(train=path))
    with pytest.raises(ValueError, match=r"data\.valid_size must be at least 1, got 0"):
        load_parallel(DataConfig(train=path, valid_size=0))
