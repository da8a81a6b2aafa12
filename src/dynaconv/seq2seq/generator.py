"""Lines of text to lines of text, with a trained encoder-decoder."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tqdm import tqdm
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import Self

from ..data.batching import sorted_batches
from ..data.moses import cut_words, join_words
from ..data.tokenizer import load_tokenizers, moses_language
from ..models import LightConvEnsemble  # its package makes AutoModelForSeq2SeqLM know our models
from ..training.checkpoints import WEIGHTS, checkpoints, loading
from ..training.loading import load_network
from ..training.recipe import task_of
from .corpus import SIDES
from .search import Hypothesis, Search, search_sorted

logger = logging.getLogger("dynaconv")

WINDOW_BATCHES = 32  # of lines that `SequenceGenerator.stream` sorts by length: 5% more padding than without windows


class SequenceGenerator:
    """Beam search over batches of lines of similar length; results come in the order of the lines.

    How to search is what the model's generation configuration says, where a call does not say it. A task has a class of
    its own, with its name as `task`, which says by `limit` and `shorten` what becomes of long lines.

    Args:
        model: an encoder-decoder, in evaluation mode on the device to use.
        source: tokenizer of the source.
        target: tokenizer of the target.
    """

    task: str

    def __init__(self, model: PreTrainedModel, source: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase):
        self.model: Any = model
        self.tokenizers = {"source": source, "target": target}

    @classmethod
    def from_pretrained(
        cls, path: str | Path, device: str | torch.device | None = None, *, ensemble: Sequence[str | Path] = ()
    ) -> Self:
        """Load the model of a run folder or of a checkpoint in it; device None: a GPU if there is one.

        With more models of the same vocabulary it is an ensemble: the mean of their probabilities decides.

        Raises:
            FileNotFoundError: there is no model at `path`; the message says what there is.
            ValueError: it was trained for another task, an ensemble has different vocabularies, a file of it is
                damaged, or it is a model that brings its own code, which is never run.
        """
        first, *others = [cls._load(Path(each), device) for each in (path, *ensemble)]
        for other, where in zip(others, ensemble, strict=True):
            for side in SIDES:
                if other.tokenizers[side].get_vocab() != first.tokenizers[side].get_vocab():
                    raise ValueError(f"{where} has another {side} vocabulary than {path}: they are no ensemble")
        if others:
            first.model = LightConvEnsemble([first.model, *(other.model for other in others)]).eval()
        return first

    @classmethod
    def _load(cls, path: Path, device: str | torch.device | None) -> Self:
        if not (path / WEIGHTS).is_file():
            found = checkpoints(path)
            hint = f"training has not finished, but there is {found[-1]}" if found else "give the folder of a run"
            raise FileNotFoundError(f"no model in {path} ({WEIGHTS}): {hint}")
        if (trained := task_of(path)) not in (None, cls.task):
            raise ValueError(f"the model in {path} was trained for {trained}, not for {cls.task}")
        with loading(path) as usual:
            # Without an answer transformers would ask on standard input, where the text to translate comes from.
            model = load_network(AutoModelForSeq2SeqLM.from_pretrained, path)
            tokenizers = load_tokenizers(path, SIDES)
        return cls(model.eval().to(device or usual), **tokenizers)

    def encode(self, side: str, text: str) -> list[int]:
        """Ids of a text, with the end of sequence, as training saw them."""
        tokenizer = self.tokenizers[side]
        if language := moses_language(tokenizer, side):
            (text,) = cut_words([text], language)
        return tokenizer(text)["input_ids"]

    @property
    def limit(self) -> int:
        """Tokens of a line that need no shortening."""
        return self.model.config.max_source_positions

    def shorten(self, line: str, ids: list[int], number: int) -> list[list[int]]:
        """What the model reads of a line of more than `limit` tokens: pieces, of which each gives a part of the result.

        Args:
            line: the text.
            ids: its tokens.
            number: of the line, from 1, for warnings.
        """
        raise NotImplementedError

    def generate(
        self, lines: Sequence[str], *, prefixes: Sequence[str] | None = None, progress: bool = False, **search: Any
    ) -> list[list[Hypothesis]]:
        """The best results for every line, best first.

        An empty line gives empty results. Where a line is read in pieces, the scores of the pieces are averaged.

        Args:
            lines: source text.
            prefixes: whole words with which the results for each line begin, "" for any.
            progress: show a progress bar.
            **search: those of :class:`~dynaconv.seq2seq.search.Search`; None: as the model's generation configuration
                says.

        Raises:
            ValueError: fewer beams than results wanted, or prefixes that are not as many as lines, or too long.
        """
        begun = [[]] * len(lines) if prefixes is None else [self._encode_prefix(prefix) for prefix in prefixes]
        if len(begun) != len(lines):
            raise ValueError(f"prefixes must be one for each of the {len(lines)} lines; got {len(begun)}")
        with tqdm(total=len(lines), unit="line", disable=not progress) as bar:
            encoded = [self._encode(line, number) for number, line in enumerate(lines, 1)]
            return self._search(encoded, Search.of(self.model, **search), bar, begun)

    @torch.inference_mode()
    def score(
        self, sources: Sequence[str], targets: Sequence[str], *, progress: bool = False, max_tokens: int = 4000
    ) -> list[tuple[float, int]]:
        """Log-probabilities of given results, for reranking.

        Args:
            sources: source text.
            targets: a result for each.
            progress: show a progress bar.
            max_tokens: batch size, tokens of the longer side.

        Returns:
            for each pair the natural logarithm of the probability of the result and its end, and how many tokens
            these are: `score` of a hypothesis of them is the first / the second ** length_penalty.

        Raises:
            ValueError: not as many targets as sources, or a side that is longer than the model takes.
        """
        if len(sources) != len(targets):
            raise ValueError(f"targets must be one for each of the {len(sources)} sources; got {len(targets)}")
        config, pairs = self.model.config, []
        limits = {"source": config.max_source_positions, "target": config.max_target_positions - 1}
        for number, pair in enumerate(zip(sources, targets, strict=True), 1):
            pairs.append([self.encode(side, text) for side, text in zip(SIDES, pair, strict=True)])
            for side, ids in zip(SIDES, pairs[-1], strict=True):
                if len(ids) > limits[side]:
                    raise ValueError(
                        f"pair {number}: the {side} has {len(ids)} tokens, the model takes {limits[side]}: cut it"
                    )
        found: list[tuple[float, int]] = [(0.0, 0)] * len(pairs)
        with tqdm(total=len(pairs), unit="pair", disable=not progress) as bar:
            for batch in sorted_batches([max(map(len, pair)) for pair in pairs], max_tokens):
                sides = [
                    self.tokenizers[side].pad({"input_ids": [pairs[i][n] for i in batch]}, return_tensors="pt")
                    for n, side in enumerate(SIDES)
                ]
                source, target = (side.to(self.model.device) for side in sides)
                labels = target["input_ids"].masked_fill(target["attention_mask"] == 0, -100)
                shifted = self.model.prepare_decoder_input_ids_from_labels(labels)
                logits = self.model(**source, decoder_input_ids=shifted, use_cache=False).logits
                losses = F.cross_entropy(logits.float().transpose(1, 2), labels, reduction="none")
                counts = target["attention_mask"].sum(1).tolist()
                for i, loss, count in zip(batch, losses.sum(1).tolist(), counts, strict=True):
                    found[i] = (-loss, count)
                bar.update(len(batch))
        return found

    def stream(
        self, lines: Iterable[str | None], *, prefix: str = "", progress: bool = False, total: int | None = None,
        **search: Any,
    ) -> Iterator[list[list[Hypothesis]]]:  # fmt: skip
        """What `generate` returns, in parts: the results for the next lines as soon as they are complete.

        Lines are sorted by length within windows of 32 batches, and no more than a window of them is read ahead.

        Args:
            lines: source text, read as needed; None: nothing more for now, go on with what has come.
            prefix: whole words with which every result begins.
            progress: show a progress bar.
            total: how many lines there are, for the progress bar; None: not known.
            **search: as in `generate`.

        Raises:
            ValueError: fewer beams than results wanted, or a prefix that is too long.
        """
        options, begun = Search.of(self.model, **search), self._encode_prefix(prefix)
        window: list[list[list[int]]] = []
        tokens = number = 0
        with tqdm(total=total, unit="line", disable=not progress) as bar:
            for line in lines:
                if line is not None:
                    number += 1
                    window.append(self._encode(line, number))
                    tokens += 1 + sum(map(len, window[-1]))
                if window and (line is None or tokens >= WINDOW_BATCHES * options.batch_tokens):
                    yield self._search(window, options, bar, [begun] * len(window))
                    window, tokens = [], 0
            if window:
                yield self._search(window, options, bar, [begun] * len(window))

    def generate_distributed(self, lines: Sequence[str]) -> list[str]:
        """Greedy results, each process of a distributed run doing its share and all receiving everything."""
        from accelerate import PartialState
        from accelerate.utils import gather_object

        state = PartialState()
        mine = list(range(state.process_index, len(lines), state.num_processes))
        texts = [hypotheses[0].text for hypotheses in self.generate([lines[i] for i in mine], beams=1)]
        everything = dict(gather_object(list(zip(mine, texts, strict=True))))
        return [everything[i] for i in range(len(lines))]

    def _encode(self, line: str, number: int) -> list[list[int]]:
        """Token ids of a line, in pieces the model can take; no piece for an empty line."""
        if not line.strip():
            return []
        ids = self.encode("source", line)
        unknown = ids.count(self.tokenizers["source"].unk_token_id)
        if unknown > len(ids) // 3:
            logger.warning("line %d: %d of %d tokens are unknown to the model", number, unknown, len(ids) - 1)
        return [ids] if len(ids) <= self.limit else self.shorten(line, ids, number)

    def _encode_prefix(self, prefix: str) -> list[int]:
        ids = self.encode("target", prefix)[:-1]
        if unknown := ids.count(self.tokenizers["target"].unk_token_id):
            logger.warning("prefix %r: %d of %d tokens are unknown to the model", prefix, unknown, len(ids))
        limit = self.model.config.max_target_positions - 2  # after the start, before the end
        if len(ids) > limit:
            raise ValueError(f"a prefix may have {limit} tokens, got {len(ids)}: {prefix[:60]}...")
        return ids

    def _search(
        self, lines: list[list[list[int]]], search: Search, bar: tqdm, prefixes: list[list[int]]
    ) -> list[list[Hypothesis]]:
        """Results for lines in pieces, of which the first begins with the prefix of the line."""
        pieces = [piece for line in lines for piece in line]
        owners = [number for number, line in enumerate(lines) for _ in line]
        missing = [len(line) for line in lines]
        found: list[list[Hypothesis]] = [[] for _ in pieces]
        bar.update(missing.count(0))
        begun = [prefixes[n] if i == 0 else [] for n, line in enumerate(lines) for i in range(len(line))]
        language = moses_language(self.tokenizers["target"], "target")
        for i, hypotheses in search_sorted(self.model, pieces, self.tokenizers, search, begun):
            texts = [hypothesis.text for hypothesis in hypotheses]
            texts = join_words(texts, language) if language else texts
            found[i] = [Hypothesis(text, score) for text, (_, score) in zip(texts, hypotheses, strict=True)]
            missing[owners[i]] -= 1
            bar.update(missing[owners[i]] == 0)
        parts = iter(found)
        return [_join(list(islice(parts, len(line))), search.nbest) for line in lines]


def _join(parts: list[list[Hypothesis]], nbest: int) -> list[Hypothesis]:
    """The k-th results for the pieces of a line, joined."""
    if not parts:
        return [Hypothesis("", 0.0)] * nbest
    return [
        Hypothesis(" ".join(part[k].text for part in parts), sum(part[k].score for part in parts) / len(parts))
        for k in range(nbest)
    ]
