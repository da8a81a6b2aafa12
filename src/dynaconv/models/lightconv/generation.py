"""What `generate()` has to know about encoder-decoders with convolutions, and ensembles of them."""

import math
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import EncoderDecoderCache, GenerationMixin
from transformers.modeling_outputs import BaseModelOutput

from ..huggingface import CACHE, CACHE_NAMES, Seq2SeqLMOutput, one_cache, output
from .stacks import LightConvPreTrainedModel, source_mask


class BeamCache(EncoderDecoderCache):
    """A cache of several rows for each source, in succession: its keys and values are there once.

    Sources whose search is over leave it, and the model computes nothing for them: `narrow` gives the rows that it
    reads, `widen` puts what it returns back in place.

    Args:
        beams: rows of a source.
        self_attention_cache: of the decoder's own tokens.
        cross_attention_cache: of the sources.
    """

    def __init__(self, beams: int, self_attention_cache: Any, cross_attention_cache: Any):
        super().__init__(self_attention_cache, cross_attention_cache)
        self.beams = beams
        self._sources: Tensor | None = None  # those that have not left; None: all
        self._count = 0  # of all sources, where some have left

    @property
    def complete(self) -> bool:
        """Whether no source has left."""
        return self._sources is None

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Row i continues what was row `beam_idx[i]`, of the same source; rows are those of all sources."""
        rows = self.narrow(beam_idx)
        if self._sources is not None:
            moved = torch.arange(len(self._sources), device=rows.device) - self._sources
            rows = rows + self.beams * moved.repeat_interleave(self.beams)
        self._reorder(rows)

    def finish(self, done: Tensor) -> None:
        """Let go of sources, where `done`, [sources] bool, is True."""
        sources = torch.arange(len(done), device=done.device) if self._sources is None else self._sources
        kept = (~done[sources]).nonzero()[:, 0]
        if 0 < len(kept) < len(sources):  # the last stay: a model may be called once more than is needed
            self._sources, self._count = sources[kept], len(done)
            self._keep(kept, (self.beams * kept[:, None] + torch.arange(self.beams, device=kept.device)).flatten())

    def narrow(self, rows: Tensor) -> Tensor:
        """Of a tensor with a row for every beam of every source, those of the sources that have not left."""
        return rows if self._sources is None else rows.unflatten(0, (-1, self.beams))[self._sources].flatten(0, 1)

    def widen(self, rows: Tensor) -> Tensor:
        """What `narrow` took apart; rows that are missing are 0."""
        if self._sources is None:
            return rows
        every = rows.new_zeros(self._count, self.beams, *rows.shape[1:])
        every[self._sources] = rows.unflatten(0, (-1, self.beams))
        return every.flatten(0, 1)

    def _reorder(self, rows: Any) -> None:
        self.self_attention_cache.reorder_cache(rows)

    def _keep(self, sources: Tensor, rows: Tensor) -> None:
        self.cross_attention_cache.batch_select_indices(sources)
        self.self_attention_cache.batch_select_indices(rows)


@dataclass
class _BeamSearch:
    """A beam search that is going on: its cache, where sources can leave it, and the scores of what it has found."""

    cache: BeamCache | None
    scores: Tensor | None = None


# transformers updates the finished beams of a search without saying of which one; several threads may search at once.
_SEARCH: ContextVar[_BeamSearch] = ContextVar("_SEARCH")


class Seq2SeqGenerationMixin(GenerationMixin):
    """Generation with an encoder-decoder whose decoder may have convolutions."""

    config: Any

    def new_cache(self, beams: int = 1) -> BeamCache:
        """An empty cache for decoding; so many rows in succession are of the same source."""
        raise NotImplementedError

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """Labels [B, T] shifted right, starting with `decoder_start_token_id`, -100 replaced by padding."""
        start, pad = self.config.decoder_start_token_id or 0, self.config.pad_token_id or 0
        shifted = torch.cat([torch.full_like(labels[:, :1], start), labels[:, :-1]], dim=1)
        return shifted.masked_fill(shifted == -100, pad)

    def _prepare_text_encoder_decoder_kwargs_for_generation(
        self, inputs_tensor: Tensor, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        # Later steps see the encoder's output only, and could not tell padding from tokens.
        if model_kwargs.get("attention_mask") is None and not inputs_tensor.is_floating_point():
            model_kwargs["attention_mask"] = source_mask(self.config, inputs_tensor, None)
        prepare: Any = super()._prepare_text_encoder_decoder_kwargs_for_generation
        return prepare(inputs_tensor, model_kwargs, *args, **kwargs)

    # pyrefly: ignore [bad-override]  (positional arguments are passed on by position)
    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        if generation_config.use_cache is False:
            return
        given = [model_kwargs.pop(name, None) for name in CACHE_NAMES]
        if (cache := one_cache(*given)) is not None:
            if isinstance(cache, BeamCache) and not cache.complete:
                raise ValueError(f"{CACHE} is of a beam search that is over, and sources have left it: begin anew")
            model_kwargs[CACHE] = cache
            return
        if generation_config.cache_implementation not in (None, "dynamic"):
            raise ValueError(
                f"cache_implementation={generation_config.cache_implementation!r} is not for convolutional decoders, "
                "whose state has a fixed size already: leave it out"
            )
        rows = (generation_config.num_beams, generation_config.num_return_sequences)
        model_kwargs[CACHE] = self.new_cache(max(count or 1 for count in rows))

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Arguments of the next call: of rows whose search goes on."""
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        if isinstance(cache := inputs.get(CACHE), BeamCache):
            for name in ("decoder_input_ids", "decoder_attention_mask", "attention_mask"):
                if inputs.get(name) is not None:
                    inputs[name] = cache.narrow(inputs[name])
        return inputs

    def _update_model_kwargs_for_generation(
        self, outputs: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        if isinstance(cache := getattr(outputs, CACHE, None), BeamCache):
            outputs.logits = cache.widen(outputs.logits)
        return super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)

    # pyrefly: ignore [bad-override]  (passed on by name)
    def _beam_search(self, *args: Any, generation_config: Any, **model_kwargs: Any) -> Any:
        cache = model_kwargs.get(CACHE)
        # A cache of the caller may be of another kind; what layers and every step give is returned row by row.
        leaves = isinstance(cache, BeamCache) and cache.beams == generation_config.num_beams
        asked = ("output_hidden_states", "output_attentions", "output_scores", "output_logits")
        whole = any(getattr(generation_config, name, None) for name in asked)
        search = _BeamSearch(cache if leaves and not whole else None)
        token = _SEARCH.set(search)
        try:
            parent: Any = super()._beam_search
            found = parent(*args, generation_config=generation_config, **model_kwargs)
        finally:
            _SEARCH.reset(token)
        # transformers gives the scores of sequences only beside those of the whole vocabulary at each step.
        if isinstance(found, dict) and search.scores is not None:
            found["sequences_scores"] = search.scores[:, : generation_config.num_return_sequences].flatten()
        return found

    # pyrefly: ignore [bad-override]  (passed on by name)
    def _update_finished_beams(
        self,
        *,
        is_early_stop_heuristic_unsatisfied: Tensor,
        is_sent_finished: Tensor,
        next_token_hits_stopping_criteria: Tensor,
        top_num_beam_mask: Tensor,
        num_beams: int,
        early_stopping: bool | str,
        **kwargs: Any,
    ) -> tuple[Tensor, ...]:
        hits = next_token_hits_stopping_criteria
        # With early stopping the result is the first hypotheses that end, as in fairseq: a better one that ends in the
        # same step as the last of them takes the place of none.
        if early_stopping is True:
            ended = hits & top_num_beam_mask
            room = num_beams - is_sent_finished.sum(-1, keepdim=True)
            next_token_hits_stopping_criteria = ended & (ended.cumsum(-1) <= room)
        update: Any = super()._update_finished_beams
        sequences, scores, indices, finished = update(
            is_early_stop_heuristic_unsatisfied=is_early_stop_heuristic_unsatisfied,
            is_sent_finished=is_sent_finished,
            next_token_hits_stopping_criteria=next_token_hits_stopping_criteria,
            top_num_beam_mask=top_num_beam_mask,
            num_beams=num_beams,
            early_stopping=early_stopping,
            **kwargs,
        )
        search = _SEARCH.get()
        search.scores = scores
        if search.cache is not None:
            # No better hypothesis is possible, none is wanted, or none can be continued.
            done = ~is_early_stop_heuristic_unsatisfied[:, 0] | hits.all(1)
            if early_stopping is True:
                done |= finished.all(1)
            search.cache.finish(done)
        return sequences, scores, indices, finished


class LightConvEnsemble(LightConvPreTrainedModel, Seq2SeqGenerationMixin):
    """Several encoder-decoders as one, for generation: the mean of their probabilities, p = 1/M sum_m p_m.

    Args:
        members: :class:`LightConvForConditionalGeneration` with the same target vocabulary, and the same tokens for the
            same source; configurations may differ in everything else. How to search is what the first one says.

    Raises:
        ValueError: vocabularies of different sizes.
    """

    def __init__(self, members: Sequence[Any]):
        super().__init__(members[0].config)
        for name in ("vocab_size", "source_vocab_size"):
            if len(sizes := {getattr(member.config, name) for member in members}) > 1:
                raise ValueError(f"the models of an ensemble must have one vocabulary; {name} is {sizes}")
        self.members = nn.ModuleList(members)
        self.encoders = _Encoders(members)
        self.generation_config = members[0].generation_config

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        """The encoders, as one."""
        return self.encoders

    def new_cache(self, beams: int = 1) -> BeamCache:
        """Empty caches of all members."""
        members = [member.new_cache(beams) for member in self._members()]
        return _Caches(members)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        encoder_outputs: BaseModelOutput | None = None,
        cache: EncoderDecoderCache | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        **kwargs: Any,
    ) -> Any:
        """`logits` [B, T, V] are logarithms of the mean probability; arguments are those of a member."""
        if encoder_outputs is None:
            encoder_outputs = self.encoders(input_ids, attention_mask)
        sizes = [member.config.d_model for member in self._members()]
        memories = encoder_outputs.last_hidden_state.split(sizes, dim=-1)  # pyrefly: ignore [missing-attribute]
        joint: Any = one_cache(cache, past_key_values)
        caches = [None] * len(sizes) if joint is None else joint.members
        found = [
            member(
                attention_mask=attention_mask,
                decoder_input_ids=decoder_input_ids,
                encoder_outputs=BaseModelOutput(last_hidden_state=memory),
                **{**kwargs, CACHE: own, "use_cache": own is not None, "return_dict": True},
            ).logits
            for member, memory, own in zip(self._members(), memories, caches, strict=True)
        ]
        logits = torch.stack([member.float().log_softmax(-1) for member in found]).logsumexp(0) - math.log(len(found))
        return output(Seq2SeqLMOutput, joint, logits=logits)

    def _members(self) -> list[Any]:
        return list(self.members)


class _Encoders(nn.Module):
    """The encoders of some models, with their outputs side by side; the models are not its submodules."""

    main_input_name = "input_ids"

    def __init__(self, members: Sequence[Any]):
        super().__init__()
        self._models = tuple(members)

    def forward(self, *args: Any, **kwargs: Any) -> BaseModelOutput:
        """`last_hidden_state`, [B, S, sum of E]."""
        found = [model.get_encoder()(*args, **{**kwargs, "return_dict": True}) for model in self._models]
        return BaseModelOutput(last_hidden_state=torch.cat([encoded.last_hidden_state for encoded in found], dim=-1))


class _Caches(BeamCache):
    """The caches of some models, which follow the beams together."""

    def __init__(self, members: Sequence[BeamCache]):
        beams = min(member.beams for member in members)
        super().__init__(beams, members[0].self_attention_cache, members[0].cross_attention_cache)
        self.members = members

    def _reorder(self, rows: Any) -> None:
        for member in self.members:
            member._reorder(rows)

    def _keep(self, sources: Tensor, rows: Tensor) -> None:
        for member in self.members:
            member._keep(sources, rows)
