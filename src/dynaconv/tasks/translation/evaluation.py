"""`dynaconv evaluate`: BLEU and chrF of a model on a test set."""

import logging
import re
from collections.abc import Iterable, Sequence
from typing import Any

from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest

from ...data.moses import cut_words
from ...seq2seq.evaluation import generate_timed
from ...seq2seq.search import Search
from .test_sets import EvaluationSet
from .translator import Translator

logger = logging.getLogger("dynaconv")
RESAMPLES = 1000  # of the sentences, for a paired bootstrap


def bleu_score(hypotheses: list[str], references: list[str], *, language: str, lowercase: bool = False) -> float:
    """sacreBLEU with its default tokenization for a target language, 0..100."""
    return BLEU(lowercase=lowercase, trg_lang=language).corpus_score(hypotheses, [references]).score


def check_scores(language: str) -> None:
    """Raise ValueError where sacreBLEU lacks what it cuts words of a target language with."""
    try:
        bleu_score(["."], ["."], language=language)
    except RuntimeError as error:
        raise ValueError(f"target language {language}: {' '.join(str(error).split())}") from None


def score(
    hypotheses: list[str],
    references: Sequence[list[str]],
    *,
    language: str,
    lowercase: bool = False,
    compound_split: bool = False,
) -> dict[str, Any]:
    """sacreBLEU and chrF with their signatures, and tokenized BLEU as in Wu et al. 2019.

    Args:
        hypotheses: translations.
        references: lists of references, each with one for every translation.
        language: of the target, for sacreBLEU's and the Moses tokenizer.
        lowercase: compare lower-cased text (the 2019 paper's IWSLT numbers).
        compound_split: split words at hyphens before tokenized BLEU (the paper's WMT numbers; adds about 0.7 BLEU).

    Returns:
        {metric: {"score": 0..100, "signature": how it was computed}}.
    """
    results = {}
    for name, metric in _metrics(language, lowercase).items():
        results[name] = {
            "score": round(metric.corpus_score(hypotheses, references).score, 2),
            "signature": str(metric.get_signature()),
        }
    tokenized = BLEU(tokenize="none", force=True, smooth_method="none", lowercase=lowercase)
    ours, *theirs = [_tokenize(side, language, compound_split) for side in (hypotheses, *references)]
    results["tokenized BLEU"] = {
        "score": round(tokenized.corpus_score(ours, theirs).score, 2),
        "signature": f"nrefs:{len(references)}|case:{'lc' if lowercase else 'mixed'}|multi-bleu, Moses tokens "
        f"({language}, punctuation normalised)" + (", compounds split" if compound_split else ""),
    }
    return results


def compare(
    hypotheses: list[str], baseline: list[str], references: Sequence[list[str]], *, language: str,
    lowercase: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """How sure it is that translations are better or worse than those of a baseline: a paired bootstrap (Koehn 2004).

    Returns:
        {metric: {"baseline", "score": 0..100, "p": how probable such a difference were by chance}}.
    """
    systems: list[tuple[str, Sequence[str]]] = [("baseline", baseline), ("ours", hypotheses)]
    metrics = _metrics(language, lowercase, references=references)
    _, results = PairedTest(systems, metrics, references=None, test_type="bs", n_samples=RESAMPLES)()
    found: Any = [results[result] for result in results if result != "System"]  # in the order of the metrics
    return {
        name: {"baseline": round(theirs.score, 2), "score": round(ours.score, 2), "p": round(ours.p_value, 4)}
        for name, (theirs, ours) in zip(metrics, found, strict=True)
    }


def evaluate(translator: Translator, test: EvaluationSet, *, language: str, **options: Any) -> dict[str, Any]:
    """Translate a test set and score it.

    Args:
        translator: the model.
        test: the test set.
        language: of the target.
        **options: `lowercase` and `compound_split` for :func:`score`, the rest for :meth:`Translator.generate`.

    Returns:
        `scores` as from :func:`score`, and what :func:`generate_timed` gives.
    """
    scoring = {name: options.pop(name) for name in ("lowercase", "compound_split") if name in options}
    result = generate_timed(translator, test.sources, **options)
    return {"scores": score(result["hypotheses"], test.references, language=language, **scoring)} | result


def tune(translator: Translator, test: EvaluationSet, penalties: Iterable[float], **options: Any) -> dict[str, Any]:
    """The length penalty with the highest BLEU on a validation set, which must not be what is reported on.

    Args:
        translator: the model.
        test: the validation set.
        penalties: exponents to try; of equally good ones the first is taken.
        **options: the others of :func:`evaluate`.

    Returns:
        what :func:`evaluate` gives with it, and `length_penalties`, {penalty: BLEU}.

    Raises:
        ValueError: one beam, which does not depend on it.
    """
    if Search.of(translator.model, beams=options.get("beams")).beams == 1:
        raise ValueError("--tune needs two or more --beams: greedy search does not depend on the length penalty")
    results = {}
    for penalty in penalties:
        results[penalty] = evaluate(translator, test, length_penalty=penalty, **options)
        logger.info("length penalty %.1f: %.2f BLEU", penalty, results[penalty]["scores"]["BLEU"]["score"])
    scores = {penalty: result["scores"]["BLEU"]["score"] for penalty, result in results.items()}
    best = max(scores, key=scores.__getitem__)
    return results[best] | {"length_penalties": scores}


def _metrics(language: str, lowercase: bool, **options: Any) -> dict[str, Any]:
    return {
        "BLEU": BLEU(lowercase=lowercase, trg_lang=language, **options),
        "chrF": CHRF(lowercase=lowercase, **options),
    }


def _tokenize(lines: list[str], language: str, compound_split: bool) -> list[str]:
    words = cut_words(lines, language)
    return [re.sub(r"(\S)-(\S)", r"\1 ##AT##-##AT## \2", line) for line in words] if compound_split else words
