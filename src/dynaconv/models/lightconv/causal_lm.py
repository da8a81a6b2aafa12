"""The LightConv / DynamicConv language model (Wu et al., ICLR 2019) as a Hugging Face model."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from ..huggingface import (
    CACHE,
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    DecoderGenerationMixin,
    attach_decoder_states,
    check_arguments,
    decoder_cache,
    one_cache,
    output,
)
from .adaptive import AdaptiveEmbedding, AdaptiveSoftmax
from .configuration import LightConvLMConfig
from .layers import Attention, Embeddings, LanguageModelLayer
from .stacks import LightConvPreTrainedModel


class LightConvLMPreTrainedModel(LightConvPreTrainedModel):
    """What the model with and without an output layer share."""

    config: LightConvLMConfig  # pyrefly: ignore [bad-override-mutable-attribute]
    config_class = LightConvLMConfig
    _no_split_modules = ["LanguageModelLayer"]  # noqa: RUF012
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": LanguageModelLayer,
        "attentions": OutputRecorder(Attention, index=1),
    }


class LightConvLMModel(LightConvLMPreTrainedModel):
    """Embeddings and layers, without the output layer."""

    def __init__(self, config: LightConvLMConfig):
        super().__init__(config)
        tokens = None
        if config.adaptive_input_cutoffs:
            tokens = AdaptiveEmbedding(
                config.vocab_size,
                config.d_model,
                config.adaptive_input_cutoffs,
                config.adaptive_input_factor,
                config.pad_token_id,
            )
        self.embeddings = Embeddings(config, config.vocab_size, config.max_target_positions, tokens)
        self.layers = nn.ModuleList(LanguageModelLayer(config, i) for i in range(config.decoder_layers))
        self.attention = [config.decoder_mixer == "attention"] * config.decoder_layers
        self.post_init()

    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> Any:
        """Tokens to hidden states.

        Args:
            input_ids: [B, T] int64; with a cache, only the tokens it has not seen.
            attention_mask: [B, past + T], nonzero at tokens; None: no padding. Padding on the right needs none.
            cache: of an earlier call.
            inputs_embeds: [B, T, E], instead of `input_ids`.
            use_cache: return a cache to continue from; None: `config.use_cache`, and never in training.
            past_key_values: an older name of `cache`.
            **kwargs: options that transformers passes to its models.

        Returns:
            `last_hidden_state` [B, T, E], `cache`.

        Raises:
            TypeError: an argument that is not known, or a cache under both names.
            ValueError: not exactly one of `input_ids` and `inputs_embeds`, or a cache that does not fit.
        """
        check_arguments(self, kwargs)
        cache = one_cache(cache, past_key_values)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if cache is not None:
            attach_decoder_states(cache, self.attention)
        elif use_cache:
            cache = decoder_cache(self.attention)
        offset = 0 if cache is None else cache.get_seq_length()
        x = self.embeddings(input_ids, inputs_embeds, attention_mask, offset)
        for layer in self.layers:
            x = layer(x, attention_mask, cache)
        return output(BaseModelOutputWithPast, cache, last_hidden_state=x)


class LightConvForCausalLM(LightConvLMPreTrainedModel, DecoderGenerationMixin):
    """Decoder-only language model with lightweight or dynamic convolutions; adaptive input and softmax.

    Example:
        >>> model = LightConvForCausalLM(LightConvLMConfig.from_preset("lightconv_lm", vocab_size=10000))
        >>> model(input_ids, labels=input_ids).loss.backward()
    """

    def __init__(self, config: LightConvLMConfig):
        super().__init__(config)
        self.model = LightConvLMModel(config)
        self.lm_head: nn.Module = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.adaptive_softmax_cutoffs:
            self.lm_head = AdaptiveSoftmax(
                config.vocab_size,
                config.d_model,
                config.adaptive_softmax_cutoffs,
                config.adaptive_softmax_factor,
                config.adaptive_softmax_dropout,
            )
        self._tied_weights_keys = _tied(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if module is self.lm_head and isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=self.config.d_model**-0.5)
        else:
            super()._init_weights(module)

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Resize the vocabulary; raises ValueError where it is in bands."""
        if new_num_tokens is not None and (self.config.adaptive_input_cutoffs or self.config.adaptive_softmax_cutoffs):
            raise ValueError("resize_token_embeddings is not for adaptive input or softmax, whose bands are fixed")
        return super().resize_token_embeddings(new_num_tokens, *args, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> Any:
        """Logits of the next token, and the loss where labels are given.

        Args:
            input_ids: see :class:`LightConvLMModel`, also for the other arguments not named here.
            attention_mask: see there.
            cache: see there.
            inputs_embeds: see there.
            labels: [B, T] int64, the tokens themselves (they are shifted here), -100 where there is no label.
            use_cache: see there.
            logits_to_keep: compute the logits of that many last tokens, or at these positions; 0: of all.
            past_key_values: see there.
            **kwargs: see there; `num_items_in_batch`: divide the summed loss by it instead of by the number of labels;
                `shift_labels`: [B, T], labels that are shifted already.

        Returns:
            `loss` (cross-entropy, nats per token), `logits` [B, T, V], `cache`. With adaptive softmax logits are
            log-probabilities, and None where it is trained: the loss does not need most of them.
        """
        items, shifted = kwargs.pop("num_items_in_batch", None), kwargs.pop("shift_labels", None)
        if shifted is None and labels is not None:
            shifted = F.pad(labels[:, 1:], (0, 1), value=-100)
        outputs: Any = self.model(
            input_ids,
            attention_mask,
            one_cache(cache, past_key_values),
            inputs_embeds,
            use_cache,
            **{**kwargs, "return_dict": True},
        )
        x, loss, logits = outputs.last_hidden_state, None, None
        head: Any = self.lm_head
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        if shifted is None:
            logits = head(x[:, kept])
        elif isinstance(head, AdaptiveSoftmax):
            loss = head.loss(x.flatten(0, 1), shifted.flatten())
            logits = None if self.training else head(x[:, kept])
        else:
            whole = head(x)
            loss = F.cross_entropy(whole.float().flatten(0, 1), shifted.flatten(), reduction="sum")
            logits = whole[:, kept]
        if loss is not None:
            loss = loss / ((shifted != -100).sum() if items is None else items)
        rest = {key: value for key, value in outputs.items() if key not in ("last_hidden_state", CACHE)}
        return output(CausalLMOutputWithPast, getattr(outputs, CACHE), loss=loss, logits=logits, **rest)


def _tied(config: LightConvLMConfig) -> dict[str, str]:
    """{name in the output: name in the input} of the weights that are one."""
    tokens = "model.embeddings.tokens"
    if not config.tie_word_embeddings:
        return {}
    if not config.adaptive_input_cutoffs:
        return {"lm_head.weight": f"{tokens}.weight"}
    clusters = range(len(config.adaptive_input_cutoffs))
    words = {"lm_head.head.weight": f"{tokens}.words.0.weight"}
    words |= {f"lm_head.tails.{c}.weight": f"{tokens}.words.{c + 1}.weight" for c in clusters}
    projections = {f"lm_head.projections.{c}.weight": f"{tokens}.projections.{c + 1}.weight" for c in clusters}
    return words | (projections if config.tie_projections else {})
