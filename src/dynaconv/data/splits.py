"""Splits of which no row nearly repeats one of another, in any column."""

import logging
import random
import re
import unicodedata
from collections.abc import Mapping, Sequence

from .text import Text, count_rows, take

logger = logging.getLogger("dynaconv")

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


def split_text(
    train: Text, given: Mapping[str, Text], sizes: Mapping[str, int], *, unit: str, near_duplicates: bool, seed: int
) -> dict[str, Text]:
    """Training text, held-out text that is given, and held-out text that is drawn from the training text.

    Groups of near-duplicates are drawn at random, one member of each is held out, and the others are dropped; training
    rows that nearly repeat given ones are dropped too. What is dropped is logged.

    Args:
        train: to train on, and to draw from.
        given: {name: held-out text}.
        sizes: {name: rows to draw}.
        unit: what rows are, such as "pairs".
        near_duplicates: keep rows that nearly repeat held-out ones, and draw single rows.
        seed: of the choice.

    Returns:
        {"train", names of `given` and of `sizes`}.

    Raises:
        ValueError: nothing is left to train on, or a size that is not positive or too large.
    """
    if given and not near_duplicates:
        total, train = count_rows(train), without_near_duplicates(train, list(given.values()))
        left = count_rows(train)
        logger.info("dropped %s training %s that nearly repeat given held-out ones", f"{total - left:,}", unit)
        if not left:
            raise ValueError(
                f"all {total:,} training {unit} nearly repeat data.valid or data.test: give other text, or set "
                "data.near_duplicates"
            )
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"data.{name}_size must be at least 1, got {size}; or give data.{name}")
    groups = list(range(count_rows(train))) if near_duplicates or not sizes else near_duplicate_groups(train)
    drawn, rest = hold_out(groups, list(sizes.values()), seed)
    if sizes:
        held_out = sum(sizes.values())
        repeated = len(groups) - len(rest) - held_out
        logger.info("held out %s %s; dropped their %s near-duplicates", f"{held_out:,}", unit, f"{repeated:,}")
    return {
        "train": take(train, rest),
        **given,
        **{name: take(train, rows) for name, rows in zip(sizes, drawn, strict=True)},
    }


def _is_marked_word(word: str) -> bool:
    """Letters and combining marks, as in the scripts of India."""
    return bool(word) and all(unicodedata.category(character)[0] in "LM" for character in word)
