"""Lines of text to lines of text, with a trained encoder-decoder."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, partial
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import Self

from ..data.batching import NO_LABEL, in_order
from ..data.moses import cut_words, join_words
from ..data.tokenizer import cut, load_tokenizers, moses_language
from ..models import LightConvEnsemble  # its package makes AutoModelForSeq2SeqLM know our models
from ..training.checkpoints import WEIGHTS, checkpoints, loading
from ..training.loading import load_network, read_config
from ..training.recipe import task_of
from .corpus import SIDES
from .prefixes import Prefix, continuing_tokens
from .search import Hypothesis, Search, check_room, search_batch

logger = logging.getLogger("dynaconv")


class SequenceGenerator:
    """Beam search over batches of lines of similar length; results come in the order of the lines.

    How to search is what the model's generation configuration says, where a call does not say it. A task has a class of
    its own, with its name as `task`, which says by `limit`, `overlong` and `split` what becomes of long lines.

    Args:
        model: an encoder-decoder, in evaluation mode on the device to use.
        source: tokenizer of the source.
        target: tokenizer of the target.
    """

    task: str
    overlong: tuple[str, ...]
    """What can become of a line of more than `limit` tokens: "split", "truncate" or "skip"; first what usually does."""

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
        config = read_config(path)
        if not config.is_encoder_decoder:
            raise ValueError(
                f"the model in {path} is a language model: {cls.task} needs an encoder-decoder; dynaconv generate and "
                "perplexity take this one"
            )
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
        """Tokens of a line that the model reads at once."""
        return self.model.config.max_source_positions

    def split(self, line: str, ids: list[int], number: int) -> list[list[int]]:
        """Pieces of a line of more than `limit` tokens, of which each gives a part of the result.

        Args:
            line: the text.
            ids: its tokens.
            number: of the line, from 1, for warnings.
        """
        raise NotImplementedError

    def generate(
        self, lines: Sequence[str], *, prefixes: Sequence[str] | None = None, overlong: str | None = None,
        progress: bool = False, **search: Any,
    ) -> list[list[Hypothesis]]:  # fmt: skip
        """The best results for every line, best first.

        An empty line gives empty results. Where a line is read in pieces, the scores of the pieces are averaged.

        Args:
            lines: source text.
            prefixes: whole words with which the results for each line begin, "" for any.
            overlong: what becomes of lines of more than `limit` tokens: one of the class's `overlong`, None: the first.
                A line that is skipped gives an empty result.
            progress: show a progress bar.
            **search: those of :class:`~dynaconv.seq2seq.search.Search`; None: as the model's generation configuration
                says.

        Raises:
            TypeError: lines or prefixes that are no strings, or a string alone; an unknown option.
            ValueError: a number out of bounds, fewer beams than results wanted, prefixes that are not as many as lines,
                or too long, or no such `overlong`.
        """
        _check_texts(lines=lines)
        begun = [""] * len(lines) if prefixes is None else prefixes
        _check_texts(lines=lines, prefixes=begun)
        options = Search.of(self.model, **search)
        known = {prefix: self._prefix(prefix, options) for prefix in set(begun)}
        pairs = [(line, known[prefix]) for line, prefix in zip(lines, begun, strict=True)]
        with tqdm(total=len(lines), unit="line", disable=not progress) as bar:
            return list(chain.from_iterable(self._stream(pairs, overlong, options, bar)))

    def stream(
        self, lines: Iterable[str | None], *, prefix: str = "", overlong: str | None = None, progress: bool = False,
        total: int | None = None, **search: Any,
    ) -> Iterator[list[list[Hypothesis]]]:  # fmt: skip
        """What `generate` returns, in parts: the results for the next lines as soon as they are there.

        Every batch has the line that has waited longest, beside lines of similar length; no more than what 32 batches
        have is read ahead.

        Args:
            lines: source text, read as needed; None: nothing more for now, go on with what has come.
            prefix: whole words with which every result begins.
            overlong: as in `generate`.
            progress: show a progress bar.
            total: how many lines there are, for the progress bar; None: not known.
            **search: as in `generate`.

        Raises:
            TypeError: a string alone instead of lines, or an unknown option.
            ValueError: a number out of bounds, fewer beams than results wanted, a prefix that is too long, or no such
                `overlong`.
        """
        _check_texts(lines=lines if isinstance(lines, str) else ())
        _check_texts(prefix=[prefix])
        options = Search.of(self.model, **search)
        begun = self._prefix(prefix, options)
        with tqdm(total=total, unit="line", disable=not progress) as bar:
            pairs = (line if line is None else (line, begun) for line in lines)
            yield from self._stream(pairs, overlong, options, bar)

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
            these are: `score` of a hypothesis of the same tokens is the first / the second ** length_penalty. They are
            the tokens that the text is cut into; a search may find a text in others, and then scores it otherwise.

        Raises:
            TypeError: sides that are no lists of strings.
            ValueError: not as many targets as sources, or a side that is longer than the model takes.
        """
        _check_texts(sources=sources, targets=targets)
        pairs = list(zip(sources, targets, strict=True))
        with tqdm(total=len(pairs), unit="pair", disable=not progress) as bar:
            return list(chain.from_iterable(self._score(pairs, max_tokens, bar)))

    def score_stream(
        self, pairs: Iterable[tuple[str, str] | None], *, progress: bool = False, total: int | None = None,
        max_tokens: int = 4000,
    ) -> Iterator[list[tuple[float, int]]]:  # fmt: skip
        """What `score` returns, in parts, as `stream` gives results.

        Args:
            pairs: source text and a result, read as needed; None: nothing more for now.
            progress: show a progress bar.
            total: how many pairs there are, for the progress bar; None: not known.
            max_tokens: batch size, tokens of the longer side.

        Raises:
            ValueError: a side that is longer than the model takes.
        """
        with tqdm(total=total, unit="pair", disable=not progress) as bar:
            yield from self._score(pairs, max_tokens, bar)

    def generate_distributed(self, lines: Sequence[str]) -> list[str]:
        """Greedy results, each process of a distributed run doing its share and all receiving everything."""
        from accelerate import PartialState
        from accelerate.utils import gather_object

        state = PartialState()
        mine = list(range(state.process_index, len(lines), state.num_processes))
        texts = [hypotheses[0].text for hypotheses in self.generate([lines[i] for i in mine], beams=1)]
        everything = dict(gather_object(list(zip(mine, texts, strict=True))))
        return [everything[i] for i in range(len(lines))]

    def _encode(self, line: str, number: int, overlong: str) -> list[list[int]]:
        """Token ids of a line, in pieces the model can take; an empty one for an empty line."""
        if not line.strip():
            return [[]]
        ids = self.encode("source", line)
        unknown = ids.count(self.tokenizers["source"].unk_token_id)
        if unknown > len(ids) // 3:
            logger.warning("line %d: %d of %d tokens are unknown to the model", number, unknown, len(ids) - 1)
        if len(ids) <= self.limit:
            return [ids]
        if overlong == "split":
            return self.split(line, ids, number)
        if overlong == "truncate":
            logger.debug("line %d: the first %d of %d tokens are read", number, self.limit, len(ids))
            return [cut(ids, self.limit)]
        logger.warning("line %d: skipped, %d tokens are more than %d", number, len(ids), self.limit)
        return [[]]

    def _prefix(self, text: str, search: Search) -> Prefix:
        ids = self.encode("target", text)[:-1]
        if unknown := ids.count(self.tokenizers["target"].unk_token_id):
            logger.warning("prefix %r: %d of %d tokens are unknown to the model", text, unknown, len(ids))
        limit = self.model.config.max_target_positions - 2  # after the start, before the end
        if len(ids) > limit:
            raise ValueError(f"a prefix may have {limit} tokens, got {len(ids)}: {text[:60]}...")
        prefix = Prefix.of(text, ids)
        check_room(self.model, search, prefix)
        return prefix

    @cached_property
    def _continuing(self) -> Tensor:
        return continuing_tokens(self.tokenizers["target"]).to(self.model.device)

    def _stream(
        self, lines: Iterable[tuple[str, Prefix] | None], overlong: str | None, search: Search, bar: tqdm
    ) -> Iterator[list[list[Hypothesis]]]:
        """Results for lines with the prefixes of their first pieces; None: nothing more for now."""
        how = overlong or self.overlong[0]
        if how not in self.overlong:
            raise ValueError(f"overlong must be one of {', '.join(self.overlong)}; got {overlong!r}")

        def pieces() -> Iterator[_Piece | None]:
            number = 0
            for line in lines:
                if line is None:
                    yield None
                    continue
                number += 1
                text, prefix = line
                encoded = self._encode(text, number, how)
                for k, ids in enumerate(encoded, 1):
                    yield _Piece(ids, prefix if k == 1 else _NO_PREFIX, k == len(encoded))

        parts: list[list[Hypothesis]] = []
        cut: list[int] = []
        compute = partial(self._search, search=search, cut=cut)
        try:
            for results in in_order(pieces(), compute, lambda piece: len(piece.ids), search.batch_tokens):
                done = []
                for is_last, hypotheses in results:
                    parts.append(hypotheses)
                    if is_last:
                        done.append(_join(parts))
                        parts = []
                bar.update(len(done))
                yield done
        finally:
            if any(cut):
                logger.warning("%d outputs are cut at their maximal length: see --max-length", sum(cut))

    def _search(
        self, pieces: list["_Piece"], search: Search, cut: list[int]
    ) -> Iterator[tuple[bool, list[Hypothesis]]]:
        """Whether a piece is the last one of its line, and its results: empty ones where it has no tokens."""
        begun = [piece for piece in pieces if piece.ids]
        sides = [piece.ids for piece in begun], [piece.prefix for piece in begun]
        continuing = self._continuing if any(prefix.ids for prefix in sides[1]) else None
        searched, count = search_batch(self.model, *sides, self.tokenizers, search, continuing) if begun else ([], 0)
        cut.append(count)
        found = iter(searched)
        language = moses_language(self.tokenizers["target"], "target")
        for piece in pieces:
            hypotheses = next(found) if piece.ids else [Hypothesis("", 0.0)] * search.nbest
            if language:
                texts = join_words([hypothesis.text for hypothesis in hypotheses], language)
                hypotheses = [Hypothesis(text, score) for text, (_, score) in zip(texts, hypotheses, strict=True)]
            yield piece.is_last, hypotheses

    def _score(
        self, pairs: Iterable[tuple[str, str] | None], max_tokens: int, bar: tqdm
    ) -> Iterator[list[tuple[float, int]]]:
        if max_tokens < 1:
            raise ValueError(f"max_tokens must be a whole number from 1; got {max_tokens}")
        numbers = count(1)
        encoded = (pair if pair is None else self._encode_pair(pair, next(numbers)) for pair in pairs)
        for found in in_order(encoded, self._score_batch, lambda pair: max(map(len, pair)), max_tokens):
            bar.update(len(found))
            yield found

    def _encode_pair(self, pair: tuple[str, str], number: int) -> list[list[int]]:
        config = self.model.config
        limits = config.max_source_positions, config.max_target_positions - 1
        encoded = [self.encode(side, text) for side, text in zip(SIDES, pair, strict=True)]
        for side, ids, limit in zip(SIDES, encoded, limits, strict=True):
            if len(ids) > limit:
                raise ValueError(f"pair {number}: the {side} has {len(ids)} tokens, the model takes {limit}: cut it")
        return encoded

    @torch.inference_mode()
    def _score_batch(self, pairs: list[list[list[int]]]) -> list[tuple[float, int]]:
        source, target = (
            self.tokenizers[side].pad({"input_ids": list(ids)}, return_tensors="pt").to(self.model.device)
            for side, ids in zip(SIDES, zip(*pairs, strict=True), strict=True)
        )
        labels = target["input_ids"].masked_fill(target["attention_mask"] == 0, NO_LABEL)
        shifted = self.model.prepare_decoder_input_ids_from_labels(labels)
        logits = self.model(**source, decoder_input_ids=shifted, use_cache=False).logits
        losses = F.cross_entropy(logits.float().transpose(1, 2), labels, reduction="none")
        return list(zip((-losses.sum(1)).tolist(), target["attention_mask"].sum(1).tolist(), strict=True))


class _Piece(NamedTuple):
    """A part of a line that the model reads at a time."""

    ids: list[int]
    """No token where the line is empty."""
    prefix: Prefix
    """Of its results."""
    is_last: bool
    """Of its line."""


_NO_PREFIX = Prefix([], False)


def _join(parts: list[list[Hypothesis]]) -> list[Hypothesis]:
    """The k-th results for the pieces of a line, joined."""
    return [
        Hypothesis(" ".join(each.text for each in same), sum(each.score for each in same) / len(same))
        for same in zip(*parts, strict=True)
    ]


def _check_texts(**given: Any) -> None:
    """TypeError where one of them is not several strings, ValueError where they are not equally many."""
    (first, others) = next(iter(given.items()))
    for name, values in given.items():
        if isinstance(values, str):
            raise TypeError(f"{name} must be a list of strings; got a string: give [{values[:30]!r}]")
        for number, value in enumerate(values, 1):
            if not isinstance(value, str):
                raise TypeError(f"{name} must be strings; number {number} is {value!r:.60}")
        if len(values) != len(others):
            raise ValueError(f"{name} must be one for each of the {len(others)} {first}; got {len(values)}")
