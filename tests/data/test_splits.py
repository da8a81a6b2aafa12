"""Near-duplicates stay on one side of a split."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynaconv.data.splits import hold_out, near_duplicate_groups, near_duplicate_key

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
    text = {"source": ["s" + "x" * a for a, _ in pairs], "target": ["t" + "x" * b for _, b in pairs]}
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
