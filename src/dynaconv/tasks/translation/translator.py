"""Translate lines of text with a trained model."""

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from tqdm import tqdm
from transformers import (
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    StoppingCriteria,
    StoppingCriteriaList,
)

from ... import models as _register  # noqa: F401 (makes AutoModelForSeq2SeqLM know our models)
from ...data.tokenizer import load_tokenizers

logger = logging.getLogger("dynaconv")

PIECE_TOKENS = 256  # a longer line is translated in pieces: models are trained on sentences
WINDOW_BATCHES = 32  # of lines that `Translator.stream` sorts by length: 5% more padding than without windows


class Hypothesis(NamedTuple):
    """A translation and its score: log-probability / length ** length_penalty (length with end of sentence)."""

    text: str
    score: float


@dataclass(frozen=True)
class _Search:
    beams: int
    length_penalty: float
    nbest: int
    max_tokens: int

    def __post_init__(self) -> None:
        if not 1 <= self.nbest <= self.beams:
            raise ValueError(f"nbest must be in 1..beams; got nbest = {self.nbest}, beams = {self.beams}")

    @property
    def batch_tokens(self) -> int:
        """Source tokens of a batch."""
        return self.max_tokens // self.beams


class _LineLimits(StoppingCriteria):
    """Ends the translations of every line at its own limit: what a line gives must not depend on its batch."""

    def __init__(self, limits: torch.Tensor):
        self.limits = limits

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        limits = self.limits.repeat_interleave(len(input_ids) // len(self.limits))  # several beams a line
        return limits < input_ids.shape[1]  # the first token only starts the sequence


class Translator:
    """Beam search over batches of lines of similar length; results come in the order of the lines.

    Args:
        model: an encoder-decoder, in evaluation mode on the device to use.
        source_tokenizer: of the source language.
        target_tokenizer: of the target language.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        source_tokenizer: PreTrainedTokenizerFast,
        target_tokenizer: PreTrainedTokenizerFast,
    ):
        self.model: Any = model
        self.source_tokenizer, self.target_tokenizer = source_tokenizer, target_tokenizer

    @classmethod
    def from_pretrained(cls, path: str | Path, device: str | torch.device | None = None) -> "Translator":
        """Load the model of a run folder or of a checkpoint in it; device None: a GPU if there is one.

        Raises:
            FileNotFoundError: there is no model at `path`; the message says what there is.
            ValueError: a file of it is damaged, or it is a model that brings its own code, which is never run.
        """
        path = Path(path)
        if not (path / "model.safetensors").is_file():
            found = sorted(path.glob("checkpoint-*"), key=lambda p: p.stat().st_mtime)
            hint = f"training has not finished, but there is {found[-1]}" if found else "give the folder of a run"
            raise FileNotFoundError(f"no model in {path} (model.safetensors): {hint}")
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            # Without an answer transformers would ask on standard input, where the text to translate comes from.
            model = AutoModelForSeq2SeqLM.from_pretrained(path, trust_remote_code=False).eval().to(device)
            tokenizers = load_tokenizers(path)
        except (SafetensorError, ValueError) as error:
            raise ValueError(f"the model in {path} cannot be loaded, a file of it may be damaged: {error}") from error
        return cls(model, *tokenizers)

    def translate(
        self,
        lines: Sequence[str],
        *,
        beams: int = 4,
        length_penalty: float = 1.0,
        nbest: int = 1,
        max_tokens: int = 4000,
        progress: bool = False,
    ) -> list[list[Hypothesis]]:
        """The `nbest` best translations of every line, best first.

        An empty line gives empty translations. A line of more than 256 tokens is translated in pieces, cut at the end
        of sentences where there are any, and the scores of the pieces are averaged.

        Args:
            lines: source text.
            beams: width of the beam; 1 is greedy search.
            length_penalty: exponent of the length in the score; above 1 favours long translations.
            nbest: translations per line, at most `beams`.
            max_tokens: batch size, source tokens x beams.
            progress: show a progress bar.

        Raises:
            ValueError: fewer beams than translations wanted.
        """
        search = _Search(beams, length_penalty, nbest, max_tokens)
        with tqdm(total=len(lines), unit="line", disable=not progress) as bar:
            return self._translate([self._encode(line, number) for number, line in enumerate(lines, 1)], search, bar)

    def stream(
        self,
        lines: Iterable[str | None],
        *,
        beams: int = 4,
        length_penalty: float = 1.0,
        nbest: int = 1,
        max_tokens: int = 4000,
        progress: bool = False,
        total: int | None = None,
    ) -> Iterator[list[list[Hypothesis]]]:
        """What `translate` returns, in parts: the translations of the next lines as soon as they are complete.

        Lines are sorted by length within windows of 32 batches, and no more than a window of them is read ahead.

        Args:
            lines: source text, read as needed; None: nothing more for now, translate what has come.
            beams: as in `translate`, like all options up to `progress`.
            length_penalty: the same.
            nbest: the same.
            max_tokens: the same.
            progress: the same.
            total: how many lines there are, for the progress bar; None: not known.

        Raises:
            ValueError: fewer beams than translations wanted.
        """
        search = _Search(beams, length_penalty, nbest, max_tokens)
        window: list[list[list[int]]] = []
        tokens = number = 0
        with tqdm(total=total, unit="line", disable=not progress) as bar:
            for line in lines:
                if line is not None:
                    number += 1
                    window.append(self._encode(line, number))
                    tokens += 1 + sum(map(len, window[-1]))
                if window and (line is None or tokens >= WINDOW_BATCHES * search.batch_tokens):
                    yield self._translate(window, search, bar)
                    window, tokens = [], 0
            if window:
                yield self._translate(window, search, bar)

    def translate_distributed(self, lines: Sequence[str]) -> list[str]:
        """Greedy translations, each process of a distributed run doing its share and all receiving everything."""
        from accelerate import PartialState
        from accelerate.utils import gather_object

        state = PartialState()
        mine = list(range(state.process_index, len(lines), state.num_processes))
        texts = [hypotheses[0].text for hypotheses in self.translate([lines[i] for i in mine], beams=1)]
        everything = dict(gather_object(list(zip(mine, texts, strict=True))))
        return [everything[i] for i in range(len(lines))]

    def _encode(self, line: str, number: int) -> list[list[int]]:
        """Token ids of a line, in pieces the model can take; no piece for an empty line."""
        if not line.strip():
            return []
        ids = self.source_tokenizer(line)["input_ids"]
        unknown = ids.count(self.source_tokenizer.unk_token_id)
        if unknown > len(ids) // 3:
            logger.warning("line %d: %d of %d tokens are unknown to the model", number, unknown, len(ids) - 1)
        limit = min(PIECE_TOKENS, self.model.config.max_source_positions)
        if len(ids) <= limit:
            return [ids]
        sentences = re.split(r"(?<=[.!?:;])\s+", line.strip())
        if len(sentences) == 1:
            sentences = line.split()
        pieces = _pack([self.source_tokenizer(s, add_special_tokens=False)["input_ids"] for s in sentences], limit - 1)
        logger.warning("line %d: %d tokens, translated in %d pieces", number, len(ids), len(pieces))
        return [[*piece, self.source_tokenizer.eos_token_id] for piece in pieces]

    def _translate(self, lines: list[list[list[int]]], search: _Search, bar: tqdm) -> list[list[Hypothesis]]:
        """Translations of lines in pieces."""
        pieces = [piece for line in lines for piece in line]
        owners = [number for number, line in enumerate(lines) for _ in line]
        missing = [len(line) for line in lines]
        found: list[list[Hypothesis]] = [[] for _ in pieces]
        bar.update(missing.count(0))
        for batch in _batches([len(piece) for piece in pieces], search.batch_tokens):
            for i, hypotheses in zip(batch, self._search([pieces[i] for i in batch], search), strict=True):
                found[i] = hypotheses
                missing[owners[i]] -= 1
                bar.update(missing[owners[i]] == 0)
        parts = iter(found)
        return [_join(list(islice(parts, len(line))), search.nbest) for line in lines]

    @torch.inference_mode()
    def _search(self, batch: list[list[int]], search: _Search) -> list[list[Hypothesis]]:
        padded = self.source_tokenizer.pad({"input_ids": batch}, return_tensors="pt").to(self.model.device)
        limits = [min(2 * len(ids) + 20, self.model.config.max_target_positions - 1) for ids in batch]
        stop = _LineLimits(torch.tensor(limits, device=self.model.device))
        output = self.model.generate(
            **{name: padded[name] for name in ("input_ids", "attention_mask")},
            num_beams=search.beams,
            num_return_sequences=search.nbest,
            length_penalty=search.length_penalty,
            do_sample=False,
            max_new_tokens=max(limits),
            stopping_criteria=StoppingCriteriaList([stop]),
            return_dict_in_generate=True,
            output_scores=True,
        )
        texts = self.target_tokenizer.batch_decode(output.sequences, skip_special_tokens=True)
        if search.beams > 1:
            scores = output.sequences_scores
        else:
            steps = self.model.compute_transition_scores(output.sequences, output.scores, normalize_logits=True)
            own = output.sequences[:, 1:] != self.model.config.pad_token_id  # others of the batch are longer
            scores = steps.where(own, 0).sum(1) / own.sum(1) ** search.length_penalty
        found = [Hypothesis(text, score) for text, score in zip(texts, scores.tolist(), strict=True)]
        return [found[i : i + search.nbest] for i in range(0, len(found), search.nbest)]


def _batches(lengths: list[int], max_tokens: int) -> list[list[int]]:
    """Indices in batches of longest x count <= max_tokens, longest first: a lack of memory shows at once."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= max_tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


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


def _join(parts: list[list[Hypothesis]], nbest: int) -> list[Hypothesis]:
    """The k-th translations of the pieces of a line, joined."""
    if not parts:
        return [Hypothesis("", 0.0)] * nbest
    return [
        Hypothesis(" ".join(part[k].text for part in parts), sum(part[k].score for part in parts) / len(parts))
        for k in range(nbest)
    ]
