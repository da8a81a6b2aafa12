"""Translate lines of text with a trained model."""

import logging
import re

from ...seq2seq.generator import SequenceGenerator

logger = logging.getLogger("dynaconv")

PIECE_TOKENS = 256  # a longer line is translated in pieces: models are trained on sentences


class Translator(SequenceGenerator):
    """Translates lines; one of more than 256 tokens in pieces, cut at the end of sentences where there are any.

    Example:
        >>> translator = Translator.from_pretrained("runs/mine")
        >>> [[best]] = translator.generate(["Dieses Paket enthält die Dokumentation."], beams=5)
    """

    task = "translation"
    overlong = ("split", "truncate", "skip")

    @property
    def limit(self) -> int:
        """Tokens of a line that is translated in one piece."""
        return min(PIECE_TOKENS, self.model.generation_config.max_new_tokens or PIECE_TOKENS, super().limit)

    def split(self, line: str, ids: list[int], number: int) -> list[list[int]]:
        """Sentences, or words where there is one only, in pieces of at most `limit` tokens."""
        sentences = re.split(r"(?<=[.!?:;])\s+", line.strip())
        if len(sentences) == 1:
            sentences = line.split()
        pieces = _pack([self.encode("source", sentence)[:-1] for sentence in sentences], self.limit - 1)
        logger.warning("line %d: %d tokens, translated in %d pieces", number, len(ids), len(pieces))
        return [[*piece, ids[-1]] for piece in pieces]


def _pack(parts: list[list[int]], limit: int) -> list[list[int]]:
    """Consecutive parts joined, or cut where one alone is too long, to at most `limit` tokens each."""
    pieces: list[list[int]] = []
    for part in parts:
        for start in range(0, len(part), limit):
            chunk = part[start : start + limit]
            if pieces and len(pieces[-1]) + len(chunk) <= limit:
                pieces[-1] = pieces[-1] + chunk
            else:
                pieces.append(chunk)
    return pieces
