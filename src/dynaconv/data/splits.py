"""Splits of which no row nearly repeats one of another, in any column."""

import random
import re
import unicodedata
from collections.abc import Sequence

from .text import Text, count_rows, take

_EDGES = re.compile(r"^[\W_]+|[\W_]+$")


def near_duplicate_key(text: str) -> str:
    """What near-duplicates have in common: case-folded words, without digits, punctuation and names like `lib64-dev`.

    A text without any words is its own key.
    """
    folded = text.casefold()
    words = (word if word.isalpha() else _EDGES.sub("", word) for word in folded.split())
    return " ".join(word for word in words if word.isalpha() or _is_marked_word(word)) or folded


def near_duplicate_groups(text: Text) -> list[int]:
    """Label each row with its group: rows that have a key in common in any column, transitively.

    Returns:
        [N] index of a member that stands for the group.
    """
    parent = list(range(count_rows(text)))

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    for lines in text.values():
        first: dict[str, int] = {}
        for i, line in enumerate(lines):
            parent[find(i)] = find(first.setdefault(near_duplicate_key(line), i))
    return [find(i) for i in range(len(parent))]


def without_near_duplicates(text: Text, held_out: Sequence[Text]) -> Text:
    """The rows of a text that have no key in common with a held-out row, in any column."""
    keys = {column: {near_duplicate_key(line) for other in held_out for line in other[column]} for column in text}
    repeated = {
        i for column, lines in text.items() for i, line in enumerate(lines) if near_duplicate_key(line) in keys[column]
    }
    return take(text, [i for i in range(count_rows(text)) if i not in repeated])


def hold_out(groups: Sequence[int], sizes: Sequence[int], seed: int) -> tuple[list[list[int]], list[int]]:
    """Draw groups at random and one member of each.

    Args:
        groups: [N] labels.
        sizes: number of members to hold out for each set.
        seed: of the choice.

    Returns:
        indices of each held-out set, in random order, and of the members of all groups that were not drawn.

    Raises:
        ValueError: too few groups.
    """
    members: dict[int, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    left = len(members)
    for size in sizes:
        if size >= left:
            raise ValueError(
                f"cannot hold out {size:,} of {left:,} rows: hold out fewer, or give more text (near-duplicates of a "
                "row do not count)"
            )
        left -= size
    rng = random.Random(seed)  # noqa: S311
    drawn = rng.sample(list(members), sum(sizes))
    chosen = iter([rng.choice(members[group]) for group in drawn])
    held_out = [[next(chosen) for _ in range(size)] for size in sizes]
    taken = set(drawn)
    return held_out, [i for i, group in enumerate(groups) if group not in taken]


def _is_marked_word(word: str) -> bool:
    """Letters and combining marks, as in the scripts of India."""
    return bool(word) and all(unicodedata.category(character)[0] in "LM" for character in word)
