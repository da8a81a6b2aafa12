"""Grafted models with caches: decoding, padding, packed sequences, generation."""

import copy
import pickle

import pytest
import torch
from transformers import DynamicCache, StaticCache

import dynaconv
from dynaconv.models.huggingface import CACHE
from dynaconv.nn import Stream, StreamStates

from .support import FAMILIES, assert_close, differs, grafted, in_chunks, left_padded, tokens, vanilla

OTHERS = {
    "deepseek_v3": {
        "num_key_value_heads": 4, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
        "v_head_dim": 8, "n_routed_experts": 4, "moe_intermediate_size": 16, "num_experts_per_tok": 2, "n_group": 1,
        "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 2,
    },
}  # fmt: skip


@pytest.mark.parametrize("placement", ["qkv", "all_linear"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_decoding_equals_the_whole(family, placement, monkeypatch):
    model, ids = grafted(family, placement), tokens()
    whole = model(ids).logits
    for chunk in (1, 2, 5):
        assert_close(in_chunks(model, ids, chunk), whole)
    assert_close(in_chunks(model, ids, 2, DynamicCache()), whole)
    past = StreamStates.past
    monkeypatch.setattr(StreamStates, "past", lambda *arguments: torch.zeros_like(past(*arguments)))
    assert differs(in_chunks(model, ids, 2), whole)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_static_cache(family):
    model, ids = grafted(family), tokens()
    whole = model(ids).logits
    for chunk in (1, 5):
        assert_close(in_chunks(model, ids, chunk, StaticCache(config=model.config, max_cache_len=20)), whole)
    expected = model.generate(ids, max_new_tokens=6, do_sample=False)
    assert torch.equal(model.generate(ids, max_new_tokens=6, do_sample=False, cache_implementation="static"), expected)


@pytest.mark.parametrize("placement", ["qkv", "all_linear"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_left_padding(family, placement, monkeypatch):
    model, ids = grafted(family, placement), tokens()
    padded, mask = left_padded(ids)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    whole = model(ids[:1]).logits
    assert_close(model(padded, attention_mask=mask, position_ids=positions).logits[:1, 3:], whole)
    if family == "llama":  # positions are relative: decoding needs none
        for chunk in (1, 2, 5):
            assert_close(in_chunks(model, padded, chunk, attention_mask=mask)[:1, 3:], whole)
    expected = model.generate(ids[:1], max_new_tokens=6, do_sample=False)[:, ids.shape[1] :]
    for cache in (None, "static"):
        actual = model.generate(
            padded, attention_mask=mask, max_new_tokens=6, do_sample=False, cache_implementation=cache
        )
        new = actual[:1, padded.shape[1] :][:, : expected.shape[1]]
        assert torch.equal(new, expected)
    given = {"attention_mask": mask, "position_ids": positions, "use_cache": False}
    assert_close(model(padded, **given).logits[:1, 3:], whole)
    monkeypatch.setattr(Stream, "masked", lambda self, x: x)
    assert differs(model(padded, **given).logits[:1, 3:], whole)


@pytest.mark.parametrize("family", ["llama", "gpt2", "deepseek_v3", "qwen3"])
@torch.no_grad()
def test_padding_behind_tokens_is_skipped_when_they_are_gone_on_with(family):
    model, ids, new = grafted(family, **OTHERS.get(family, {})), tokens(), tokens(2, 4, seed=9)
    plain = vanilla(family, **OTHERS.get(family, {}))
    for front, middle in ((0, 3), (2, 1)):  # a prompt padded on the right; one padded on both sides, then padded rows
        row = torch.cat([torch.full((2, front), 5), ids, torch.full((2, middle), 5), new], 1)
        mask = torch.ones_like(row)
        mask[:, :front] = mask[:, front + 13 : front + 13 + middle] = 0
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        for cut in (front + 13 + middle, front + 13, front + 14 if middle > 1 else front + 13):
            for network in (plain, model):
                cache, pieces = DynamicCache(config=network.config), []
                for a, b in ((0, cut), (cut, row.shape[1])):
                    given = {"attention_mask": mask[:, :b], "position_ids": positions[:, a:b], CACHE: cache}
                    pieces.append(network(row[:, a:b], **given).logits)
                whole = network(torch.cat([ids, new], 1)).logits
                assert_close(torch.cat(pieces, 1)[mask.bool()].view_as(whole), whole)


@pytest.mark.parametrize("placement", ["qkv", "all_linear"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_sequences(family, placement):
    model, ids = grafted(family, placement), tokens(1, 14)
    ends = [0, 1, 6, 14]
    pieces = [ids[:, start:end] for start, end in zip(ends, ends[1:])]
    positions = torch.cat([torch.arange(piece.shape[1]) for piece in pieces])[None]
    separate = torch.cat([model(piece, use_cache=False).logits for piece in pieces], 1)
    packed = model(ids, position_ids=positions, use_cache=False).logits
    assert_close(packed, separate)
    rows = model(torch.cat([ids, ids.flip(1)]), position_ids=torch.cat([positions, positions]), use_cache=False).logits
    assert_close(rows[:1], separate)
    assert differs(model(ids, use_cache=False).logits, separate)
    if family == "llama":
        gradients = [torch.autograd.grad(y.square().sum(), model.parameters()) for y in (separate, packed)]
        for expected, actual in zip(*gradients):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


GENERATION = {
    "greedy": {"do_sample": False},
    "beam": {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
    "sampling": {"do_sample": True, "top_k": 5, "num_return_sequences": 2},
}


@pytest.mark.parametrize("way", GENERATION)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_generation_equals_that_without_a_cache(family, way):
    model, ids = grafted(family, "all_linear"), tokens()
    model.generation_config.eos_token_id = None
    results = []
    for cache in (True, False):
        torch.manual_seed(3)
        results.append(model.generate(ids, max_new_tokens=7, use_cache=cache, **GENERATION[way]))
    assert torch.equal(*results)


@torch.no_grad()
def test_beam_search_reorders_states(monkeypatch):
    """Over several models, since one may not be sensitive; without the reordering they differ."""
    from dynaconv.models.huggingface import ConvolvedLayer

    def outputs(model, cache):
        return [
            model.generate(tokens(seed=seed), max_new_tokens=12, num_beams=4, do_sample=False, use_cache=cache)
            for seed in range(6)
        ]

    model = grafted()
    expected = outputs(model, False)
    assert all(map(torch.equal, outputs(model, True), expected))
    monkeypatch.setattr(
        ConvolvedLayer, "reorder_cache", lambda self, index: super(ConvolvedLayer, self).reorder_cache(index)
    )
    assert not all(map(torch.equal, outputs(model, True), expected))


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
@torch.no_grad()
def test_assisted_and_continued_generation(family):
    model, assistant, ids = grafted(family, "all_linear"), grafted(family), tokens(1)
    expected = model.generate(ids, max_new_tokens=12, do_sample=False)
    assert torch.equal(model.generate(ids, max_new_tokens=12, do_sample=False, assistant_model=assistant), expected)
    assert torch.equal(model.generate(ids, max_new_tokens=12, do_sample=False, prompt_lookup_num_tokens=3), expected)
    first = model.generate(ids, max_new_tokens=5, do_sample=False, return_dict_in_generate=True)
    turn = torch.cat([first.sequences, tokens(1, 4, seed=9)], 1)
    continued = model.generate(turn, max_new_tokens=5, do_sample=False, **{CACHE: first[CACHE]})
    assert torch.equal(continued, model.generate(turn, max_new_tokens=5, do_sample=False))


@torch.no_grad()
def test_caches_can_be_pickled_and_recorded_from_the_start():
    model, ids = grafted("gemma3_text"), tokens()
    cache = DynamicCache(config=model.config)
    cache.activate_past_recording()  # the layer with a sliding window remembers it for both
    model(ids[:, :8], **{CACHE: cache})
    cache.crop(-3)
    cache = pickle.loads(pickle.dumps(cache))
    assert_close(model(ids[:, 5:], **{CACHE: cache}).logits, model(ids).logits[:, 5:])
    expected = model.generate(ids[:1], max_new_tokens=5, do_sample=False)
    assert torch.equal(model.generate(ids[:1], max_new_tokens=5, do_sample=False, assistant_early_exit=1), expected)
    assert model.config.num_hidden_layers == 2


def test_caches_of_the_wrong_kind():
    model, ids = grafted(), tokens()
    full = vanilla()(ids)[CACHE]
    with pytest.raises(ValueError, match="the cache holds 13 tokens that the short convolutions have not seen"):
        model(ids, **{CACHE: full})
    cache = DynamicCache(config=model.config)
    with pytest.raises(TypeError, match="must be a transformers Cache.*got tuple"):
        model(ids, **{CACHE: ((ids, ids),)})
    cache = model(ids[:, :4])[CACHE]
    dynaconv.ungraft(copy.deepcopy(model))(ids[:, 4:6], **{CACHE: cache})
    with pytest.raises(
        ValueError, match="holds 6 tokens, of which the convolutions have seen 4: something else has changed"
    ):
        model(ids[:, 6:], **{CACHE: cache})
    cache = model(ids[:, :4])[CACHE]
    with pytest.raises(ValueError, match="4 tokens that the convolution self_attn_o_proj.o_proj has not seen"):
        grafted("llama", "all_linear")(ids[:, 4:], **{CACHE: cache})
    with pytest.raises(RuntimeError, match="LlamaForCausalLM does not work with continuous batching"):
        model.generate_batch([[5, 6, 7]])
    cache = model(ids)[CACHE]
    with pytest.raises(RuntimeError, match="2 tokens cannot be taken back, 0 were recorded"):
        cache.crop(-2)
