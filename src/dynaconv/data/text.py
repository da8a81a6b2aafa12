"""Text in named columns, and the special tokens of every vocabulary."""

import re
import unicodedata
from collections.abc import Iterable, Sequence

Text = dict[str, list[str]]
"""{column: strings}, equally many in all columns, such as {"source": [...], "target": [...]}; a row has one of each."""

SPECIAL_TOKENS = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
BOS, PAD, EOS, UNK = range(len(SPECIAL_TOKENS))
"""Ids of the special tokens."""

SYLLABLES = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
"""Kana, ideographs and hangul, within the brackets of a regular expression."""
UNSPACED = re.compile(f"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff{SYLLABLES}]")
"""Those, and the scripts of Thai, Lao, Burmese and Khmer: words are written without spaces (in Korean: are short)."""


def normalize(lines: Iterable[str]) -> list[str]:
    """Unicode in composed form (NFC), and single spaces between words only."""
    return [unicodedata.normalize("NFC", " ".join(line.split())) for line in lines]


def in_word(sign: str) -> bool:
    """Whether a character is a letter, a mark on one, or a digit, in a script with spaces between words."""
    return sign != "" and unicodedata.category(sign)[0] in "LMN" and not UNSPACED.match(sign)


def count_rows(text: Text) -> int:
    """How many rows there are."""
    return len(next(iter(text.values())))


def take(text: Text, rows: Sequence[int]) -> Text:
    """Some rows, by their indices."""
    return {column: [lines[i] for i in rows] for column, lines in text.items()}
