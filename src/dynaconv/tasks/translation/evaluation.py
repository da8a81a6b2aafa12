"""`dynaconv evaluate`: BLEU and chrF of a model on a test set."""

import re
import time
from typing import Any

from sacrebleu.metrics import BLEU, CHRF

from ...data.text import Text
from .translator import Translator


def bleu_score(hypotheses: list[str], references: list[str], *, language: str, lowercase: bool = False) -> float:
    """sacreBLEU with its default tokenization for a target language, 0..100."""
    return BLEU(lowercase=lowercase, trg_lang=language).corpus_score(hypotheses, [references]).score


def score(
    hypotheses: list[str],
    references: list[str],
    *,
    language: str,
    lowercase: bool = False,
    compound_split: bool = False,
) -> dict[str, Any]:
    """sacreBLEU and chrF with their signatures, and tokenized BLEU as in Wu et al. 2019.

    Args:
        hypotheses: translations.
        references: one reference each.
        language: of the target, for sacreBLEU's and the Moses tokenizer.
        lowercase: compare lower-cased text (the 2019 paper's IWSLT numbers).
        compound_split: split words at hyphens before tokenized BLEU (the paper's WMT numbers; adds about 0.7 BLEU).

    Returns:
        {metric: {"score": 0..100, "signature": how it was computed}}.
    """
    bleu, chrf = BLEU(lowercase=lowercase, trg_lang=language), CHRF(lowercase=lowercase)
    results = {}
    for name, metric in (("BLEU", bleu), ("chrF", chrf)):
        results[name] = {
            "score": round(metric.corpus_score(hypotheses, [references]).score, 2),
            "signature": str(metric.get_signature()),
        }
    tokenized = BLEU(tokenize="none", force=True, smooth_method="none", lowercase=lowercase)
    sides = [_tokenize(side, language, compound_split) for side in (hypotheses, references)]
    results["tokenized BLEU"] = {
        "score": round(tokenized.corpus_score(sides[0], [sides[1]]).score, 2),
        "signature": f"multi-bleu, Moses tokens ({language})" + (", compounds split" if compound_split else ""),
    }
    return results


def evaluate(translator: Translator, text: Text, *, language: str, **options: Any) -> dict[str, Any]:
    """Translate a test set and score it.

    Args:
        translator: the model.
        text: the test set.
        language: of the target.
        **options: `lowercase` and `compound_split` for :func:`score`, the rest for :meth:`Translator.translate`.

    Returns:
        `scores` as from :func:`score`, `hypotheses`, `sentences`, `seconds`, `sentences_per_second`.
    """
    scoring = {name: options.pop(name) for name in ("lowercase", "compound_split") if name in options}
    started = time.perf_counter()
    hypotheses = [best[0].text for best in translator.translate(text["source"], progress=True, **options)]
    seconds = time.perf_counter() - started
    return {
        "scores": score(hypotheses, text["target"], language=language, **scoring),
        "hypotheses": hypotheses,
        "sentences": len(hypotheses),
        "seconds": round(seconds, 2),
        "sentences_per_second": round(len(hypotheses) / seconds, 2),
    }


def _tokenize(lines: list[str], language: str, compound_split: bool) -> list[str]:
    from sacremoses import MosesTokenizer

    moses = MosesTokenizer(language)
    tokenized = [str(moses.tokenize(line, return_str=True)) for line in lines]
    return [re.sub(r"(\S)-(\S)", r"\1 ##AT##-##AT## \2", line) for line in tokenized] if compound_split else tokenized
