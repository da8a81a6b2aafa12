"""Tiny decoders with short convolutions, and what their tests share."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dynaconv.models import DynaConvConfig, DynaConvForCausalLM

TINY = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "mamba_head_dim": 16, "mamba_state_size": 8, "delta_head_dim": 8, "num_experts": 4,
    "num_experts_per_tok": 2, "chunk_size": 4, "conv_rank": 3, "conv_head_dim": 8, "initializer_range": 0.1,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MODELS = {
    "attention": {}, "all linear": {"placement": "all_linear", "conv": "headwise", "qk_norm": True},
    "experts": {"ffn": "moe", "placement": "kv"}, "static": {"conv": "static"},
    "canon": {"placement": "ABCD"}, "mamba2": {"mixer": "mamba2", "placement": "mixer"},
    "gated_deltanet": {"mixer": "gated_deltanet", "placement": "mixer", "conv": "headwise"},
    "mixed": {"mixer": ["gated_deltanet", "attention", "mamba2"], "num_hidden_layers": 3, "placement": "all_linear"},
}  # fmt: skip


def make(name, **options):
    torch.manual_seed(0)
    model = DynaConvForCausalLM(DynaConvConfig(**{**TINY, **MODELS[name], **options}))
    for key, parameter in model.named_parameters():
        if key.endswith((".basis", ".static")) or ("projection" in key and "headwise" in model.config.conv):
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def llama_of(model, **options):
    """A Llama with the weights of a model without convolutions."""
    sizes = {name: TINY[name] for name in list(TINY)[:6]}
    llama = LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=True, **options)).eval()
    names = {".mixer_norm.": ".input_layernorm.", ".mixer.": ".self_attn.", ".ffn_norm.": ".post_attention_layernorm.", ".ffn.": ".mlp."}  # fmt: skip
    weights = {}
    for key, tensor in model.state_dict().items():
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        weights[key] = tensor
    llama.load_state_dict(weights)
    return llama


def tokens(batch=2, length=13, seed=1):
    return torch.randint(3, 61, (batch, length), generator=torch.Generator().manual_seed(seed))


def assert_close(actual, expected):
    """1.6e-5 were measured between a prompt in pieces and the whole, with transformers 5.21."""
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=2e-5)


def differs(actual, expected):
    return (actual - expected).abs().max() > 1e-3


def in_chunks(model, ids, chunk, cache=None, mask=None):
    pieces = []
    for begin in range(0, ids.shape[1], chunk):
        end = begin + chunk
        output = model(ids[:, begin:end], attention_mask=None if mask is None else mask[:, :end], cache=cache)
        cache = output.cache
        pieces.append(output.logits)
    return torch.cat(pieces, 1)
