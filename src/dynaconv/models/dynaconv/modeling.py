"""A decoder-only language model with short convolutions; attention, Mamba-2 or Gated DeltaNet; dense or experts.

Source: *Dynamic Short Convolutions Improve Transformers* (Sieberling et al., 2026).

Dims: B batch, T tokens, C channels of the residual stream, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel
from transformers import initialization as init
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.olmoe.modeling_olmoe import OlmoeExperts, OlmoeTopKRouter, load_balancing_loss_func
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from ...nn import DynamicShortConv, GatedDeltaNet, Mamba2, ShortConv
from ...nn.shortconv import FilterProjection
from ..huggingface import (
    CACHE,
    CACHE_NAMES,
    DecoderGenerationMixin,
    MoeCausalLMOutputWithPast,
    MoeModelOutputWithPast,
    attach_decoder_states,
    check_arguments,
    create_causal_mask,
    decoder_cache,
    find_sequences,
    note_version,
    one_cache,
    output,
)
from .configuration import DynaConvConfig
from .layers import KEPT_IN_FP32, Attention, DynaConvLayer


class DynaConvPreTrainedModel(PreTrainedModel):
    """What the model with and without an output layer share."""

    # pyrefly: ignore [bad-override-mutable-attribute]
    config: DynaConvConfig
    config_class = DynaConvConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["DynaConvLayer"]  # noqa: RUF012
    _skip_keys_device_placement = list(CACHE_NAMES)  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _keep_in_fp32_modules_strict = list(KEPT_IN_FP32)  # noqa: RUF012
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": DynaConvLayer,
        "attentions": Attention,
        "router_logits": OutputRecorder(OlmoeTopKRouter, index=0),
    }

    # transformers guesses both from the source of this file, and what it looks for is in another.
    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return True

    def __init__(self, config: DynaConvConfig, *args: Any, **kwargs: Any):
        note_version()
        config.check()  # once more: `from_pretrained` changes values after they were checked
        super().__init__(config, *args, **kwargs)
        if not self._is_stateful:
            self._keep_in_fp32_modules_strict = set()

    @property
    def _is_stateful(self) -> bool:  # pyrefly: ignore [bad-override]
        """Whether tokens cannot be taken back, as assisted decoding does."""
        return any(mixer != "attention" for mixer in self.config.mixers)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, (FilterProjection, ShortConv, DynamicShortConv, Mamba2, GatedDeltaNet)):
            # Not those that a checkpoint has brought, which transformers marks.
            own = dict(module.named_parameters(recurse=False))
            loaded = {p: p.clone() for p in own.values() if getattr(p, "_is_hf_initialized", False)}
            module.reset_parameters()
            for parameter, value in loaded.items():
                parameter.copy_(value)
        elif isinstance(module, OlmoeTopKRouter):
            init.normal_(module.weight, std=std)
        elif isinstance(module, OlmoeExperts):
            init.normal_(module.gate_up_proj, std=std)
            init.normal_(module.down_proj, std=std)
        else:
            super()._init_weights(module)


class DynaConvModel(DynaConvPreTrainedModel):
    """Embedding, layers and the last norm."""

    def __init__(self, config: DynaConvConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(DynaConvLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config)  # pyrefly: ignore [bad-argument-type]
        self.attention = [mixer == "attention" for mixer in config.mixers]
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> MoeModelOutputWithPast:
        """Tokens to hidden states.

        Args:
            input_ids: [B, T] int64.
            attention_mask: [B, past + T], nonzero at tokens; None: no padding.
            position_ids: [B, T]; where they start again, without a mask and a cache, a packed sequence begins.
            cache: of an earlier call.
            inputs_embeds: [B, T, C], instead of `input_ids`.
            use_cache: return a cache to continue from; None: `config.use_cache`.
            past_key_values: an older name of `cache`.
            **kwargs: `cu_seq_lens_q` [N + 1], the ends of packed sequences; others that transformers has are passed on
                to attention.

        Returns:
            `last_hidden_state` [B, T, C], `cache`.

        Raises:
            TypeError: an argument that is not known, or a cache under both names.
            ValueError: not exactly one of `input_ids` and `inputs_embeds`, or a cache that does not fit.
        """
        check_arguments(self, kwargs)
        cache = one_cache(cache, past_key_values)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if cache is not None:
            attach_decoder_states(cache, self.attention)
        sequences = find_sequences(x.shape[:2], attention_mask, position_ids, cache, kwargs.get("cu_seq_lens_q"))
        cu_seqlens = sequences.cu_seqlens
        counted = _positions(x, cache, cu_seqlens)
        position_ids = counted if position_ids is None else position_ids
        if cu_seqlens is not None:
            if cache is not None:
                raise ValueError("packed sequences are not continued: leave the cache out")
            attention_mask = (
                attention_mask if isinstance(attention_mask, Tensor) and attention_mask.dim() == 4 else None
            )
        elif use_cache and cache is None:
            cache = decoder_cache(self.attention)
        embeddings = self.rotary_emb(x, position_ids)
        causal = None
        if any(self.attention):
            packed = None if cu_seqlens is None else counted
            causal = create_causal_mask(self.config, x, attention_mask, cache, packed)
        for layer in self.layers:
            x = layer(
                x,
                sequences.mask,
                cu_seqlens,
                attention_mask=causal,
                position_embeddings=embeddings,
                position_ids=position_ids,
                **{CACHE: cache},
                **kwargs,
            )
        return output(MoeModelOutputWithPast, cache, last_hidden_state=self.norm(x))


class DynaConvForCausalLM(DynaConvPreTrainedModel, DecoderGenerationMixin):
    """Decoder-only language model with short convolutions.

    Example:
        >>> model = DynaConvForCausalLM(DynaConvConfig.from_preset("300m"))
        >>> model(input_ids, labels=input_ids).loss.backward()
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012
    _tp_plan = {"lm_head": "colwise_gather_output"}  # noqa: RUF012

    def __init__(self, config: DynaConvConfig):
        super().__init__(config)
        self.model = DynaConvModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> MoeCausalLMOutputWithPast:
        """Logits of the next token, and the loss where labels are given.

        Args:
            input_ids: see :class:`DynaConvModel`, also for the other arguments not named here.
            attention_mask: see there.
            position_ids: see there.
            cache: see there.
            inputs_embeds: see there.
            labels: [B, T] int64, the tokens themselves (they are shifted here), -100 where there is no label.
            use_cache: see there.
            logits_to_keep: compute the logits of that many last tokens, or at these positions; 0: of all.
            past_key_values: see there.
            **kwargs: see there; `num_items_in_batch`: divide the summed loss by it instead of by the number of labels;
                `shift_labels`: [B, T], labels that are shifted already.

        Returns:
            `loss` (cross-entropy, nats per token; in training with experts, the balancing loss is added), `logits`
            [B, T, V], `cache`.
        """
        items, shifted = kwargs.pop("num_items_in_batch", None), kwargs.pop("shift_labels", None)
        supervised = labels is not None or shifted is not None
        balance = supervised and self.training and self.config.ffn == "moe"
        balance = balance and self.config.router_aux_loss_coef > 0
        if balance:
            kwargs["output_router_logits"] = True
        outputs: Any = self.model(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            cache=one_cache(cache, past_key_values),
            return_dict=True,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss: Any = None
        auxiliary: Any = None
        if supervised:
            loss = self.loss_function(logits, labels, self.config.vocab_size, items, shift_labels=shifted)
            if balance:
                two = isinstance(attention_mask, Tensor) and attention_mask.dim() == 2
                mask = attention_mask[:, -logits.shape[1] :] if two else None
                auxiliary = load_balancing_loss_func(
                    outputs.router_logits, self.config.num_experts, self.config.num_experts_per_tok, mask
                )
                if torch.is_grad_enabled() and not getattr(auxiliary, "requires_grad", False):
                    raise ValueError(
                        "reentrant activation checkpointing loses the balancing loss: set use_reentrant=False"
                    )
                # The sum over micro-batches and processes is then a mean, as that of the cross-entropy.
                targets: Any = labels[:, 1:] if shifted is None else shifted  # pyrefly: ignore
                share = 1 if items is None else (targets != -100).sum() / items
                loss = loss + self.config.router_aux_loss_coef * share * auxiliary
        return output(
            MoeCausalLMOutputWithPast,
            getattr(outputs, CACHE),
            loss=loss,
            aux_loss=auxiliary,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=outputs.router_logits,
        )


def _positions(x: Tensor, cache: Cache | None, cu_seqlens: Tensor | None) -> Tensor:
    """[1 or B, T], counted from the beginning of every sequence."""
    B, T, _ = x.shape
    if cu_seqlens is None:
        return (torch.arange(T, device=x.device) + (0 if cache is None else cache.get_seq_length()))[None]
    tokens = torch.arange(B * T, device=x.device)
    return (tokens - cu_seqlens[torch.bucketize(tokens, cu_seqlens[1:], right=True)]).view(B, T)
