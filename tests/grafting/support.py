"""Tiny Hugging Face models, with and without short convolutions, and what their tests share."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

import dynaconv
from dynaconv.models.huggingface import CACHE

SIZES = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "initializer_range": 0.1,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


FAMILIES = {
    "llama": {}, "qwen3": {}, "gemma3_text": {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "olmoe": EXPERTS, "mixtral": EXPERTS, "qwen3_moe": EXPERTS, "phi3": {}, "gpt_neox": {},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0},
}  # fmt: skip


FUSED = {"gpt_neox", "gpt2", "phi3"}


def vanilla(family="llama", **options):
    torch.manual_seed(0)
    sizes = {} if family == "gpt2" else SIZES
    common = {
        name: SIZES[name]
        for name in ("vocab_size", "initializer_range", "pad_token_id", "bos_token_id", "eos_token_id")
    }
    config = AutoConfig.for_model(family, **(sizes | common | FAMILIES.get(family, {}) | options))
    return AutoModelForCausalLM.from_config(config).eval()


def tokens(batch=2, length=13, seed=1):
    return torch.randint(3, 61, (batch, length), generator=torch.Generator().manual_seed(seed))


def grafted(family="llama", placement="qkv", kind="lowrank", **options):
    """With large random convolutions, after a few steps of training."""
    model = dynaconv.graft(vanilla(family, **options), placement, kind, rank=3, head_dim=8, init="paper")
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if "short_convs" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for seed in range(3):
        with torch.enable_grad():
            model(tokens(seed=seed), labels=tokens(seed=seed)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def differs(actual, expected):
    return (actual - expected).abs().max() > 1e-3


def in_chunks(model, ids, chunk, cache=None, start=4, **keywords):
    cache = cache if cache is not None else DynamicCache(config=model.config)
    pieces, begin = [], 0
    while begin < ids.shape[1]:
        end = min(ids.shape[1], begin + (chunk if begin else start))
        mask = keywords["attention_mask"][:, :end] if "attention_mask" in keywords else None
        pieces.append(model(ids[:, begin:end], attention_mask=mask, **{CACHE: cache}, use_cache=True).logits)
        begin = end
    return torch.cat(pieces, 1)


def left_padded(ids, padding=3):
    padded = torch.cat([torch.full((len(ids), padding), 5), ids], 1)
    mask = torch.ones_like(padded)
    mask[:, :padding] = 0
    padded[1] = torch.cat([ids[1], ids[1, :padding]])
    mask[1] = 1
    return padded, mask


def gradients(model, ids, **keywords):
    model.zero_grad()
    model(ids, labels=ids, **keywords).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
