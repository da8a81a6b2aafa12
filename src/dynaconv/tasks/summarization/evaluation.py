"""ROUGE of summaries, with intervals, and summaries that need no model."""

import re
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
from rouge_score.rouge_scorer import RougeScorer
from tqdm import tqdm

METRICS = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeLsum": "ROUGE-L"}
RESAMPLES = 1000  # of the documents, for intervals
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def rouge(hypotheses: Sequence[str], references: Sequence[str], *, progress: bool = False) -> dict[str, Any]:
    """ROUGE-1, ROUGE-2 and ROUGE-L of the summary (Lin 2004): F1 of stemmed words, as rouge-score computes it.

    For ROUGE-L, sentences end at a full stop, an exclamation or a question mark, with a space behind it.

    Args:
        hypotheses: summaries.
        references: as many.
        progress: show a progress bar.

    Returns:
        {metric: {"score": mean, "low", "high": its 95% interval by a bootstrap over documents, 0..100, "signature"}}.
    """
    scorer = RougeScorer(list(METRICS), use_stemmer=True)
    pairs = tqdm(list(zip(references, hypotheses, strict=True)), desc="ROUGE", unit="summary", disable=not progress)
    found = [scorer.score(*map(_lines, pair)) for pair in pairs]
    values = 100 * np.array([[scores[name].fmeasure for name in METRICS] for scores in found])
    rng = np.random.default_rng(0)  # the same documents for every system: intervals can be compared
    means = [values[rng.integers(len(values), size=len(values))].mean(0) for _ in range(RESAMPLES)]
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    signature = f"rouge-score {version('rouge-score')}, stemmed, F1, 95% interval of {RESAMPLES} resamples"
    return {
        label: {
            "score": round(float(values[:, i].mean()), 2),
            "low": round(float(low[i]), 2),
            "high": round(float(high[i]), 2),
            "signature": signature + (", summary level" if name == "rougeLsum" else ""),
        }
        for i, (name, label) in enumerate(METRICS.items())
    }


def rouge_l(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """The mean of ROUGE-L, 0..100."""
    return rouge(hypotheses, references)["ROUGE-L"]["score"]


def first_sentences(documents: Sequence[str], count: int) -> list[str]:
    """The first sentences of each document: what a model has to beat."""
    return [" ".join(_SENTENCE_END.split(document.strip())[:count]) for document in documents]


def first_words(documents: Sequence[str], count: int) -> list[str]:
    """The first words of each document: the same, at the length of the references."""
    return [" ".join(document.split()[:count]) for document in documents]


def _lines(text: str) -> str:
    """A sentence in each line, as rouge-score expects it."""
    return "\n".join(_SENTENCE_END.split(text.strip()))
