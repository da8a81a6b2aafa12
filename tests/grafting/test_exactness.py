"""Grafts compute what the model did until they are trained, where they should, and nothing else."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import dynaconv
from dynaconv.grafting.modules import LayerCall
from dynaconv.models.huggingface import Sequences
from dynaconv.nn import Stream

from .support import FAMILIES, assert_close, differs, grafted, in_chunks, left_padded, tokens, vanilla


@pytest.mark.parametrize("placement", ["qkv", "v", "all_linear"])
@pytest.mark.parametrize("kind", ["lowrank", "headwise", "static"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_identity_until_trained(family, kind, placement):
    model, ids = vanilla(family), tokens()
    before, keys = model(ids), set(model.state_dict())
    assert dynaconv.graft(model, placement, kind, head_dim=8) is model
    assert torch.equal(model(ids).logits, before.logits)
    assert keys < set(model.state_dict())
    assert all("short_convs" in key for key in set(model.state_dict()) - keys)
    assert model.load_state_dict(vanilla(family).state_dict(), strict=False).unexpected_keys == []
    for name, parameter in model.named_parameters():
        if "short_convs" in name:
            torch.nn.init.normal_(parameter)
    assert differs(model(ids).logits, before.logits)
    assert torch.equal(dynaconv.ungraft(model)(ids).logits, before.logits)
    assert set(model.state_dict()) == keys
    assert not hasattr(model.config, "dynaconv")
    assert type(model) is type(vanilla(family))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_where_the_convolutions_are(family):
    """The outputs of the projections of one letter change, and of no other."""
    seen = {}
    for letter in "qkv":
        model = vanilla(family)
        name = {"gpt2": "attn.c_attn", "gpt_neox": "attention.query_key_value", "phi3": "self_attn.qkv_proj"}.get(
            family
        )
        names = [name] * 3 if name else [f"self_attn.{other}_proj" for other in "qkv"]
        layer = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))[0]
        projections = [layer.get_submodule(path) for path in dict.fromkeys(names)]
        x = torch.randn(2, 13, 32)
        before = torch.cat([projection(x) for projection in projections], -1)
        dynaconv.graft(model, letter, "static", init="paper")
        layer.graft_slot.call = LayerCall(layer.short_convs, Stream(), Sequences(x.shape[:2]))
        changed = (torch.cat([projection(x) for projection in projections], -1) != before).any(0).any(0)
        seen[letter] = changed
        sizes = [32, 32, 32] if family in ("gpt2", "gpt_neox") else [32, 16, 16]
        assert changed.sum() == sizes["qkv".index(letter)]
    assert torch.stack(list(seen.values())).sum(0).eq(1).all()
    if family == "gpt_neox":  # of every head q, k, v
        assert seen["k"].unflatten(0, (4, 3, 8)).all(-1).tolist() == [[False, True, False]] * 4
    else:
        assert seen["q"][:32].all()


def test_convolutions_of_one_input_share_a_projection(monkeypatch):
    model, calls = grafted("llama", "all_linear"), []
    conditions = dynaconv.nn.ShortConvGroup.conditions
    monkeypatch.setattr(
        dynaconv.nn.ShortConvGroup, "conditions", lambda self, x: calls.append(self) or conditions(self, x)
    )
    model(tokens())
    assert len(calls) == len(set(calls)) == 2 * 4  # qkv, o, gate and up, down
    layer = model.model.layers[0].short_convs
    assert sorted(layer) == ["mlp_down_proj", "mlp_gate_up", "self_attn_o_proj", "self_attn_qkv"]
    assert layer["self_attn_qkv"].projection.weight.shape == (3 * 3, 32)


@torch.no_grad()
def test_threads_do_not_share_a_call():
    model, inputs = grafted("llama", "all_linear"), [tokens(seed=seed) for seed in range(4)]
    expected = [model(ids).logits for ids in inputs]
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda ids: [model(ids).logits for _ in range(10)], inputs))
    for logits, again in zip(expected, results):
        assert all(torch.equal(logits, other) for other in again)


@torch.no_grad()
def test_positional_arguments_are_seen():
    model, ids = grafted(), tokens()
    mask = left_padded(ids)[1][:, :13]
    expected = model.model(ids, attention_mask=mask).last_hidden_state
    assert torch.equal(model.model(ids, mask).last_hidden_state, expected)
    assert differs(model.model(ids).last_hidden_state, expected)


@torch.no_grad()
def test_layers_without_attention_stay_as_they_are():
    sizes = {"layer_types": ["linear_attention", "full_attention"], "num_experts": 4, "num_experts_per_tok": 2}
    model, ids = vanilla("qwen3_next", **sizes, shared_expert_intermediate_size=16, moe_intermediate_size=16), tokens()
    before = model(ids).logits
    dynaconv.graft(model, "qkv", rank=3)
    assert torch.equal(model(ids).logits, before)
    for name, parameter in model.named_parameters():
        if "short_convs" in name:
            assert "layers.1." in name
            torch.nn.init.normal_(parameter, std=0.2)
    whole = model(ids).logits
    assert differs(whole, before)
    assert_close(in_chunks(model, ids, 2), whole)


@torch.no_grad()
def test_copies_and_pickles():
    model, ids = grafted("llama", "all_linear"), tokens()
    expected = model(ids).logits
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(again(ids).logits, expected)
        assert_close(in_chunks(again, ids, 2), expected)
        for parameter in again.parameters():
            parameter.zero_()
        assert torch.equal(model(ids).logits, expected)
