"""Words as the Moses scripts cut them: punctuation normalised, every sign a word of its own (the 2019 paper's data)."""

import logging
from collections.abc import Iterable
from functools import cache

from sacremoses import MosesDetokenizer, MosesPunctNormalizer, MosesTokenizer
from sacremoses.tokenize import nonbreaking_prefixes
from tqdm import tqdm

logger = logging.getLogger("dynaconv")


def cut_words(lines: Iterable[str], language: str, title: str | None = None) -> list[str]:
    """Lines in which a space stands between any two words, and signs that Moses reserves are escaped.

    Args:
        lines: text, in which no line is broken.
        language: code of the language, whose abbreviations are known for the more common ones.
        title: of a progress bar; None: there is none.
    """
    normalizer, tokenizer = _cutters(language)
    shown = tqdm(lines, desc=title, unit="line", disable=title is None)
    return [str(tokenizer.tokenize(normalizer.normalize(line), return_str=True)) for line in shown]


def join_words(lines: Iterable[str], language: str) -> list[str]:
    """Text as it is written, from lines of words."""
    detokenizer = _joiner(language)
    return [str(detokenizer.detokenize(line.split())) for line in lines]


# Each reads its rules from files: once for a language, not for every line that is translated.
@cache
def _cutters(language: str) -> tuple[MosesPunctNormalizer, MosesTokenizer]:
    if language not in nonbreaking_prefixes.available_langs:
        logger.warning("Moses has no list of abbreviations for the language %r: those of English are taken", language)
    return MosesPunctNormalizer(language), MosesTokenizer(language)


@cache
def _joiner(language: str) -> MosesDetokenizer:
    return MosesDetokenizer(language)
