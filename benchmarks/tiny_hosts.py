"""Tiny random models of the causal language model types of transformers.

The sizes that most configurations share are set by name; what a type needs besides stands in :data:`OVERRIDES`.
"""

import dataclasses
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

PARAMETERS = 30_000_000  # more are not tiny: a size of the type is missing here

SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "n_embed", "emb_dim", "dim"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "n_inner", "ffn_hidden_size"), 48),
    **dict.fromkeys(("decoder_ffn_dim", "encoder_ffn_dim"), 48),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_encoder_layers", "num_decoder_layers", "num_experts_per_tok", "moe_k", "moe_topk"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("num_encoder_attention_heads", "num_decoder_attention_heads"), 4),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "attention_chunk_size"), 8),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "mamba_d_head", "mamba_head_dim", "mamba_d_state"), 8),
    **dict.fromkeys(("ssm_state_size", "state_size", "mamba_chunk_size", "chunk_size"), 8),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 64),
    **dict.fromkeys(("hidden_dropout", "hidden_dropout_prob", "dropout", "resid_pdrop", "embd_pdrop"), 0.0),
    **dict.fromkeys(("attention_dropout", "attention_probs_dropout_prob", "attn_pdrop"), 0.0),
    "vocab_size": 61, "initializer_range": 0.1, "init_std": 0.1, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "tie_word_embeddings": False, "is_decoder": True, "use_cache": True, "num_key_value_heads": 2,
    "qk_head_dim": 16, "n_group": 1, "topk_group": 1, "linear_num_value_heads": 4, "linear_num_key_heads": 2,
    "sliding_window": 4, "image_size": 28, "patch_size": 14,
}  # fmt: skip

_LINEAR = {"layer_types": ["linear_attention", "full_attention"]}
_CONV = {"layer_types": ["conv", "full_attention"]}
_SLIDING = {"layer_types": ["sliding_attention", "full_attention"]}
_ZAMBA = {
    "num_hidden_layers": 3, "layers_block_type": ["linear_attention", "hybrid", "linear_attention"],
    "attention_head_dim": 16,
}  # fmt: skip
_SHARED_KEYS = {
    "layer_types": ["sliding_attention", "full_attention"] * 2, "num_hidden_layers": 4, "num_kv_shared_layers": 2,
    "vocab_size_per_layer_input": 61, "hidden_size_per_layer_input": 8,
}  # fmt: skip
_ROPE = {"rope_type": "default", "rope_theta": 1e4}

OVERRIDES: dict[str, dict[str, Any]] = {
    "bailing_hybrid": _LINEAR,
    "bamba": {"attn_layer_indices": [1]},
    "codegen": {"rotary_dim": 4},
    "cohere_compass_text": {**_SLIDING, "rope_parameters": dict.fromkeys(_SLIDING["layer_types"], _ROPE)},
    "dory": _SLIDING,
    "dots1": {"n_shared_experts": 1},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma3n_text": {**_SHARED_KEYS, "laurel_rank": 4},
    "gemma4_text": {**_SHARED_KEYS, "global_head_dim": 16},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 4},
    "gptj": {"rotary_dim": 4},
    "granitemoehybrid": {"layers_block_type": ["mamba", "attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": _LINEAR,
    "lfm2": _CONV,
    "lfm2_moe": _CONV,
    "lfm3": _CONV,
    "longcat_flash": {"ffn_hidden_size": 48, "expert_ffn_hidden_size": 16, "zero_expert_num": 2},
    "mamba2": {"num_heads": 8},
    "moshi": {"audio_vocab_size": 61},
    "mpt": {"attn_config": {"attn_pdrop": 0}},
    "olmo_hybrid": _LINEAR,
    "qwen3_5_moe_text": _LINEAR,
    "qwen3_5_text": _LINEAR,
    "qwen3_next": _LINEAR,
    "recurrent_gemma": {"block_types": ["recurrent", "attention"], "lru_width": 32},
    "reformer": {
        "axial_pos_embds": False, "attn_layers": ["local", "lsh"], "num_buckets": 2, "attention_head_size": 8,
        "local_attn_chunk_length": 4, "lsh_attn_chunk_length": 4,
    },
    "roc_bert": {
        "pronunciation_vocab_size": 61, "shape_vocab_size": 61, "pronunciation_embed_dim": 8, "shape_embed_dim": 8,
    },
    "xlstm": {"qk_dim_factor": 1.0, "v_dim_factor": 1.0, "chunkwise_kernel": "chunkwise--native_autograd"},
    "xmod": {"default_language": "en_XX"},
    "zamba": _ZAMBA,
    "zamba2": {**_ZAMBA, "num_mem_blocks": 1},
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}  # fmt: skip


def make(kind: str) -> Any:
    """A tiny model of a type, with the same random parameters every time, in evaluation mode.

    Raises:
        ValueError: it would not be tiny.
    """
    config = _config(type(AutoConfig.for_model(kind)))
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
    if size > PARAMETERS:
        raise ValueError(f"{size:,} parameters")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.generation_config.eos_token_id = None
    return model


def _config(cls: type[PreTrainedConfig]) -> PreTrainedConfig:
    fields = {field.name for field in dataclasses.fields(cls)}
    values = {name: size for name, size in SIZES.items() if name in fields}
    if "kv_lora_rank" in fields:
        values["num_key_value_heads"] = SIZES["num_attention_heads"]
    values |= OVERRIDES.get(cls.model_type, {})
    default = cls()
    for name in cls.sub_configs:
        part = getattr(default, name, None)
        if isinstance(part, PreTrainedConfig):
            values[name] = type(part)(**values[name]) if name in values else _config(type(part))
    return cls(**values)
