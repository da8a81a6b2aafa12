"""Outputs for a test set, timed, and what is kept of an evaluation."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .generator import SequenceGenerator
from .search import Search


def generate_timed(generator: SequenceGenerator, sources: Sequence[str], **search: Any) -> dict[str, Any]:
    """The best outputs for some sources, with a progress bar.

    Args:
        generator: the model.
        sources: lines of text.
        **search: see :meth:`SequenceGenerator.generate`.

    Returns:
        `hypotheses`, `sentences` (how many there are), `seconds`, `sentences_per_second`, and `search`, all of it.
    """
    started = time.perf_counter()
    hypotheses = [best[0].text for best in generator.generate(sources, progress=True, **search)]
    seconds = time.perf_counter() - started
    said: dict[str, Any] = asdict(Search.of(generator.model, **search))
    if not said["max_length"]:
        said["max_length"] = "2 x source + 20"
    return {
        "hypotheses": hypotheses,
        "sentences": len(hypotheses),
        "seconds": round(seconds, 2),
        "sentences_per_second": round(len(hypotheses) / seconds, 2),
        "search": said,
    }


def title_of(model: Path, ensemble: Sequence[Path], spec: str) -> str:
    """What an evaluation is of, for the title of its table."""
    return f"{' + '.join(map(str, (model, *ensemble)))} on {spec}"


def save_evaluation(
    result: dict[str, Any],
    hypotheses: list[str],
    *,
    model: Path,
    ensemble: Sequence[Path],
    spec: str,
    json_path: Path | None,
    hypotheses_path: Path | None,
) -> None:
    """Write results as JSON, with what they are of, and outputs as lines, where a path is given."""
    if hypotheses_path is not None:
        hypotheses_path.write_text("".join(f"{line}\n" for line in hypotheses), encoding="utf-8")
    if json_path is not None:
        record = {"model": str(model), "ensemble": list(map(str, ensemble)), "data": spec, **result}
        json_path.write_text(json.dumps(record, indent=1, ensure_ascii=False), encoding="utf-8")
