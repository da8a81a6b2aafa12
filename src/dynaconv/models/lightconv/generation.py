"""What `generate()` has to know about encoder-decoders with convolutions, and ensembles of them."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import EncoderDecoderCache, GenerationMixin
from transformers.modeling_outputs import BaseModelOutput

from ..huggingface import CACHE, CACHE_NAMES, Seq2SeqLMOutput, one_cache, output
from .stacks import LightConvPreTrainedModel, source_mask


class BeamCache(EncoderDecoderCache):
    """A cache of several rows for each source, in succession: its keys and values are there once.

    Args:
        beams: rows of a source.
        self_attention_cache: of the decoder's own tokens.
        cross_attention_cache: of the sources.
    """

    def __init__(self, beams: int, self_attention_cache: Any, cross_attention_cache: Any):
        super().__init__(self_attention_cache, cross_attention_cache)
        self.beams = beams

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Row i continues what was row `beam_idx[i]`, of the same source."""
        self.self_attention_cache.reorder_cache(beam_idx)


class Seq2SeqGenerationMixin(GenerationMixin):
    """Generation with an encoder-decoder whose decoder may have convolutions."""

    config: Any

    def new_cache(self, beams: int = 1) -> EncoderDecoderCache:
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
            model_kwargs[CACHE] = cache
            return
        if generation_config.cache_implementation not in (None, "dynamic"):
            raise ValueError(
                f"cache_implementation={generation_config.cache_implementation!r} is not for convolutional decoders, "
                "whose state has a fixed size already: leave it out"
            )
        rows = (generation_config.num_beams, generation_config.num_return_sequences)
        model_kwargs[CACHE] = self.new_cache(max(count or 1 for count in rows))

    # pyrefly: ignore [bad-override]  (passed on by name)
    def _update_finished_beams(
        self,
        *,
        is_sent_finished: Tensor,
        next_token_hits_stopping_criteria: Tensor,
        top_num_beam_mask: Tensor,
        num_beams: int,
        early_stopping: bool | str,
        **kwargs: Any,
    ) -> tuple[Tensor, ...]:
        # With early stopping the result is the first hypotheses that end, as in fairseq: a better one that ends in the
        # same step as the last of them takes the place of none.
        if early_stopping is True:
            ended = next_token_hits_stopping_criteria & top_num_beam_mask
            room = num_beams - is_sent_finished.sum(-1, keepdim=True)
            next_token_hits_stopping_criteria = ended & (ended.cumsum(-1) <= room)
        update: Any = super()._update_finished_beams
        return update(
            is_sent_finished=is_sent_finished,
            next_token_hits_stopping_criteria=next_token_hits_stopping_criteria,
            top_num_beam_mask=top_num_beam_mask,
            num_beams=num_beams,
            early_stopping=early_stopping,
            **kwargs,
        )


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

    def new_cache(self, beams: int = 1) -> EncoderDecoderCache:
        """Empty caches of all members."""
        return _Caches([member.new_cache(beams) for member in self._members()])

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


class _Caches(EncoderDecoderCache):
    """The caches of some models, which follow the beams together."""

    def __init__(self, members: Sequence[EncoderDecoderCache]):
        super().__init__(members[0].self_attention_cache, members[0].cross_attention_cache)
        self.members = members

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Row i continues what was row `beam_idx[i]`, in every cache."""
        for member in self.members:
            member.reorder_cache(beam_idx)
