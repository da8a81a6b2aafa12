"""Summarize documents with a trained model."""

from ...seq2seq.generator import SequenceGenerator


class Summarizer(SequenceGenerator):
    """Summarizes the beginning of each document: as many tokens as the model was trained on.

    Example:
        >>> summarizer = Summarizer.from_pretrained("runs/mine")
        >>> [[best]] = summarizer.generate([document], no_repeat_ngram_size=3)
    """

    task = "summarization"
    overlong = ("truncate", "skip")
