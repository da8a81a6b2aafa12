"""Text in named columns, and the special tokens of every vocabulary."""

import unicodedata
from collections.abc import Iterable, Sequence

Text = dict[str, list[str]]
"""{column: strings}, equally many in all columns, such as {"source": [...], "target": [...]}; a row has one of each."""

SPECIAL_TOKENS = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
BOS, PAD, EOS, UNK = range(len(SPECIAL_TOKENS))
"""Ids of the special tokens."""


def normalize(lines: Iterable[str]) -> list[str]:
    """Unicode in composed form (NFC), and single spaces between words only."""
    return [unicodedata.normalize("NFC", " ".join(line.split())) for line in lines]


def count_rows(text: Text) -> int:
    """How many rows there are."""
    return len(next(iter(text.values())))


def take(text: Text, rows: Sequence[int]) -> Text:
    """Some rows, by their indices."""
    return {column: [lines[i] for i in rows] for column, lines in text.items()}
