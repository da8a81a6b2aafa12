"""Summarize documents with a trained model."""

import logging

from ...data.tokenizer import cut
from ...seq2seq.generator import SequenceGenerator

logger = logging.getLogger("dynaconv")


class Summarizer(SequenceGenerator):
    """Summarizes the beginning of each document: as many tokens as the model was trained on.

    Example:
        >>> summarizer = Summarizer.from_pretrained("runs/mine")
        >>> [[best]] = summarizer.generate([document], no_repeat_ngram_size=3)
    """

    task = "summarization"

    def shorten(self, line: str, ids: list[int], number: int) -> list[list[int]]:
        """The first `limit` tokens, of which the last ends the sequence."""
        logger.debug("document %d: the first %d of %d tokens are read", number, self.limit, len(ids))
        return [cut(ids, self.limit)]
