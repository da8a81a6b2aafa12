"""The LightConv / DynamicConv encoder-decoder (Wu et al., ICLR 2019) as a Hugging Face model."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.generic import can_return_tuple

from ..huggingface import (
    CACHE,
    Seq2SeqLMOutput,
    Seq2SeqModelOutput,
    attach_seq2seq_states,
    check_arguments,
    decoder_cache,
    one_cache,
    output,
)
from .configuration import LightConvConfig
from .generation import BeamCache, Seq2SeqGenerationMixin
from .stacks import LightConvDecoder, LightConvEncoder, LightConvPreTrainedModel, source_mask

_ENCODED = ("last_hidden_state", "hidden_states", "attentions")  # of an encoder's output as a tuple


class LightConvModel(LightConvPreTrainedModel):
    """Encoder and decoder without the output layer."""

    def __init__(self, config: LightConvConfig):
        super().__init__(config)
        self.encoder = LightConvEncoder(config)
        self.decoder = LightConvDecoder(config)
        if config.share_embeddings == "all":
            self._tied_weights_keys = {"encoder.embeddings.tokens.weight": "decoder.embeddings.tokens.weight"}
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The source token embedding."""
        return self.encoder.embeddings.tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the source token embedding."""
        self.encoder.embeddings.tokens = value  # pyrefly: ignore [bad-assignment]

    def get_encoder(self, modality: str | None = None) -> LightConvEncoder:
        """The encoder."""
        return self.encoder

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple[Tensor, ...] | None = None,
        cache: EncoderDecoderCache | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        **kwargs: Any,
    ) -> Any:
        """Encode the source and decode target tokens.

        Args:
            input_ids: [B, S] int64, source tokens.
            attention_mask: [B, S], nonzero at tokens; None: wherever `input_ids` is not the padding token.
            decoder_input_ids: [B, T] int64; with a cache, only the tokens it has not seen.
            decoder_attention_mask: [B, past + T], nonzero at tokens, for targets padded on the left. Targets padded on
                the right need none: the decoder is causal.
            encoder_outputs: what the encoder returned, instead of `input_ids`.
            cache: of an earlier call.
            inputs_embeds: [B, S, E], instead of `input_ids`.
            decoder_inputs_embeds: [B, T, E], instead of `decoder_input_ids`.
            use_cache: return a cache to continue from; None: `config.use_cache`, and never in training.
            past_key_values: an older name of `cache`.
            **kwargs: options that transformers passes to its models: `output_hidden_states`; `output_attentions`, which
                there are with `attn_implementation="eager"`; `return_dict`.

        Returns:
            `last_hidden_state` [B, T, E], `cache`, `encoder_last_hidden_state` [B, S, E], and what was asked for. With
            return_dict=False a tuple without the missing ones.

        Raises:
            TypeError: an argument that is not known, a cache under both names, or not an EncoderDecoderCache.
            ValueError: no source or no target tokens were given, or a cache that does not fit.
        """
        check_arguments(self, kwargs)
        cache = one_cache(cache, past_key_values)
        if decoder_input_ids is None and decoder_inputs_embeds is None:
            raise ValueError("decoder_input_ids, decoder_inputs_embeds or labels must be given; got none of them")
        attention_mask = source_mask(self.config, input_ids, attention_mask)
        encoded: Any = encoder_outputs
        if encoder_outputs is None:
            encoded = self.encoder(input_ids, attention_mask, inputs_embeds, **{**kwargs, "return_dict": True})
        elif isinstance(encoder_outputs, (tuple, list)):
            encoded = dict(zip(_ENCODED, encoder_outputs, strict=False))
        memory = encoded["last_hidden_state"]
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if cache is not None:
            attach_seq2seq_states(cache, _attention(self.config))
        elif use_cache:
            cache = _cache(self.config)
        decoded: Any = self.decoder(
            decoder_input_ids,
            memory,
            attention_mask,
            decoder_attention_mask,
            decoder_inputs_embeds,
            cache,
            **{**kwargs, "return_dict": True},
        )
        return output(
            Seq2SeqModelOutput,
            cache,
            last_hidden_state=decoded.last_hidden_state,
            decoder_hidden_states=decoded.hidden_states,
            decoder_attentions=decoded.attentions,
            cross_attentions=decoded.cross_attentions,
            encoder_last_hidden_state=memory,
            encoder_hidden_states=encoded.get("hidden_states"),
            encoder_attentions=encoded.get("attentions"),
        )


class LightConvForConditionalGeneration(LightConvPreTrainedModel, Seq2SeqGenerationMixin):
    """Encoder-decoder with an output layer over the target vocabulary, for translation and summarization.

    Example:
        >>> model = LightConvForConditionalGeneration(LightConvConfig.from_preset("lightconv_iwslt_de_en"))
        >>> model.generate(input_ids, num_beams=4, length_penalty=1.0)
    """

    def __init__(self, config: LightConvConfig):
        super().__init__(config)
        self.model = LightConvModel(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        target = "model.decoder.embeddings.tokens.weight"
        tied = {"lm_head.weight": target, "model.encoder.embeddings.tokens.weight": target}
        self._tied_weights_keys = dict(
            list(tied.items())[: {"none": 0, "decoder": 1, "all": 2}[config.share_embeddings]]
        )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if module is self.lm_head:
            nn.init.normal_(module.weight, std=self.config.d_model**-0.5)
        else:
            super()._init_weights(module)

    def get_encoder(self, modality: str | None = None) -> LightConvEncoder:
        """The encoder."""
        return self.model.encoder

    def new_cache(self, beams: int = 1) -> BeamCache:
        """An empty cache for decoding; so many rows in succession are of the same source."""
        return _cache(self.config, beams)

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Resize the vocabulary; raises ValueError where source and target do not share one."""
        if new_num_tokens is not None and self.config.share_embeddings != "all":
            raise ValueError(
                f'resize_token_embeddings needs share_embeddings="all": with "{self.config.share_embeddings}" source '
                "and target have vocabularies of their own"
            )
        return super().resize_token_embeddings(new_num_tokens, *args, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple[Tensor, ...] | None = None,
        cache: EncoderDecoderCache | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        **kwargs: Any,
    ) -> Any:
        """Logits of the next target token, and the loss where labels are given.

        Args:
            input_ids: see :class:`LightConvModel`, also for the other arguments not named here.
            attention_mask: see there.
            decoder_input_ids: see there; None with labels: the labels shifted right.
            decoder_attention_mask: see there.
            encoder_outputs: see there.
            cache: see there.
            inputs_embeds: see there.
            decoder_inputs_embeds: see there.
            labels: [B, T] int64, -100 where there is no label.
            use_cache: see there; False with labels unless asked for.
            past_key_values: see there.
            **kwargs: see there; `num_items_in_batch`: divide the summed loss by it instead of by the number of labels.

        Returns:
            `loss` (cross-entropy, nats per token, scalar), `logits` [B, T, V], `cache`, `encoder_last_hidden_state`.
            With return_dict=False a tuple without the missing ones.
        """
        if labels is not None:
            use_cache = bool(use_cache)
            if decoder_input_ids is None and decoder_inputs_embeds is None:
                decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        items = kwargs.pop("num_items_in_batch", None)
        outputs: Any = self.model(
            input_ids,
            attention_mask,
            decoder_input_ids,
            decoder_attention_mask,
            encoder_outputs,
            one_cache(cache, past_key_values),
            inputs_embeds,
            decoder_inputs_embeds,
            use_cache,
            **{**kwargs, "return_dict": True},
        )
        logits = self.lm_head(outputs.last_hidden_state)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="sum")
            loss = loss / ((labels != -100).sum() if items is None else items)
        rest = {key: value for key, value in outputs.items() if key not in ("last_hidden_state", CACHE)}
        return output(Seq2SeqLMOutput, getattr(outputs, CACHE), loss=loss, logits=logits, **rest)


def _attention(config: LightConvConfig) -> list[bool]:
    """Whether the layers of the decoder have self-attention."""
    return [config.decoder_mixer == "attention"] * config.decoder_layers


def _cache(config: LightConvConfig, beams: int = 1) -> BeamCache:
    shared = config._attn_implementation != "eager"  # which returns the probabilities of every row
    return BeamCache(beams if shared else 1, decoder_cache(_attention(config)), DynamicCache())
