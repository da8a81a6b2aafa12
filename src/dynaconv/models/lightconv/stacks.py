"""The encoder and the decoder of the LightConv / DynamicConv networks (Wu et al., ICLR 2019)."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import EncoderDecoderCache, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithCrossAttentions
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from ...nn import DynamicConv, LightConv
from ..huggingface import CACHE_NAMES, note_version
from .configuration import LightConvConfig
from .layers import Attention, DecoderLayer, Embeddings, EncoderLayer


class LightConvPreTrainedModel(PreTrainedModel):
    """Configuration, initialisation and what transformers has to know about the networks and their parts."""

    # pyrefly: ignore [bad-override-mutable-attribute]
    config: LightConvConfig
    config_class = LightConvConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["EncoderLayer", "DecoderLayer"]  # noqa: RUF012
    _skip_keys_device_placement = list(CACHE_NAMES)  # noqa: RUF012
    _supports_sdpa = True
    _input_embed_layer = "tokens"  # of `embeddings`

    # transformers guesses from the source of this file, and what it looks for is in another.
    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True

    def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any):
        note_version()
        super().__init__(config, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Xavier for linear layers (gain 1/sqrt(2) for queries, keys and values), N(0, 1/E) for embeddings."""
        if isinstance(module, LightConv | DynamicConv):
            module.reset_parameters()
            for part in module.modules():
                setattr(part, "_is_hf_initialized", True)  # noqa: B010 (a flag of transformers, on any module)
        elif isinstance(module, Attention):
            for linear in (module.q_proj, module.k_proj, module.v_proj):
                _init_linear(linear, 2**-0.5)
        elif isinstance(module, nn.Linear):
            _init_linear(module, 1.0)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)
            if module.padding_idx is not None and not getattr(module.weight, "_is_hf_initialized", False):
                module.weight[module.padding_idx].zero_()
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


def _init_linear(linear: nn.Linear, gain: float) -> None:
    nn.init.xavier_uniform_(linear.weight, gain)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


class LightConvEncoder(LightConvPreTrainedModel):
    """Embeddings and encoder layers."""

    _can_record_outputs = {"hidden_states": EncoderLayer, "attentions": Attention}  # noqa: RUF012

    def __init__(self, config: LightConvConfig):
        super().__init__(config)
        vocab_size = config.source_vocab_size or config.vocab_size
        self.embeddings = Embeddings(config, vocab_size, config.max_source_positions)
        self.layers = nn.ModuleList(EncoderLayer(config, i) for i in range(config.encoder_layers))
        self.norm = nn.LayerNorm(config.d_model) if config.normalize_before else nn.Identity()
        self.post_init()

    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput:
        """Encode source tokens.

        Args:
            input_ids: [B, S] int64.
            attention_mask: [B, S], nonzero at tokens; None: wherever `input_ids` is not the padding token.
            inputs_embeds: [B, S, E], instead of `input_ids`.
            **kwargs: `output_hidden_states`, `output_attentions`; others, which generation passes, are ignored.

        Returns:
            `last_hidden_state`, [B, S, E].
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds, the source")
        attention_mask = source_mask(self.config, input_ids, attention_mask)
        x = self.embeddings(input_ids, inputs_embeds, attention_mask, 0)
        for layer in self.layers:
            x = layer(x, attention_mask)
        return BaseModelOutput(last_hidden_state=self.norm(x))


class LightConvDecoder(LightConvPreTrainedModel):
    """Embeddings and decoder layers."""

    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": DecoderLayer,
        "attentions": OutputRecorder(Attention, index=1, layer_name="mixer"),
        "cross_attentions": OutputRecorder(Attention, index=1, layer_name="cross_attention"),
    }

    def __init__(self, config: LightConvConfig):
        super().__init__(config)
        self.embeddings = Embeddings(config, config.vocab_size, config.max_target_positions)
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.decoder_layers))
        self.norm = nn.LayerNorm(config.d_model) if config.normalize_before else nn.Identity()
        self.post_init()

    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        cache: EncoderDecoderCache | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithCrossAttentions:
        """Target tokens [B, T] to `last_hidden_state` [B, T, E]; masks and `kwargs` as in :class:`LightConvModel`."""
        offset = 0 if cache is None else cache.get_seq_length()
        x = self.embeddings(input_ids, inputs_embeds, attention_mask, offset)
        memory_mask = None if encoder_attention_mask is None else encoder_attention_mask[:, None, None, :].bool()
        for layer in self.layers:
            x = layer(x, encoder_hidden_states, attention_mask, memory_mask, cache)
        return BaseModelOutputWithCrossAttentions(last_hidden_state=self.norm(x))


def source_mask(config: LightConvConfig, input_ids: Tensor | None, attention_mask: Tensor | None) -> Tensor | None:
    """The mask given, or one that is nonzero at tokens other than padding."""
    if attention_mask is None and input_ids is not None:
        return input_ids.ne(config.pad_token_id or 0).long()
    return attention_mask
