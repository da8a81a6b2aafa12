"""What cannot be grafted, or not be called, is refused."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import dynaconv

from .support import grafted, tokens, vanilla


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda m: dynaconv.graft(m, rank=2.5), TypeError, "rank must be int; got 2.5"),
    (lambda m: dynaconv.graft(m, ["q"]), ValueError, "placement must be letters of"),
    (lambda m: dynaconv.graft(m, rank=0), ValueError, "rank must be at least 1; got 0"),
    (lambda m: dynaconv.graft(m, width=0), ValueError, "dim and width must be at least 1"),
    (lambda m: dynaconv.graft(m, kind="dynamic"), ValueError, "kind must be one of lowrank, headwise, static; got 'dynamic'"),
    (lambda m: dynaconv.graft(m, kind="headwise", head_dim=5), ValueError, "self_attn_qkv of LlamaDecoderLayer: dim must be divisible by head_dim; got dim = 32, head_dim = 5"),
    (lambda m: dynaconv.graft(m, placement=""), ValueError, "placement must be letters of"),
    (lambda m: dynaconv.graft(m, placement="mlp"), ValueError, "got 'mlp'"),
    (lambda m: dynaconv.graft(m, placement="qq"), ValueError, "each once"),
    (lambda m: dynaconv.graft(m, init="zero"), ValueError, "init must be"),
    (lambda m: dynaconv.graft(m, kind="static", static=False), ValueError, "got static=False"),
    (lambda m: dynaconv.ungraft(m), ValueError, "model must have short convolutions"),
    (lambda m: dynaconv.ungraft(None), ValueError, "got a plain NoneType"),
    (lambda m: dynaconv.graft(m.model.layers[0]), TypeError, "PreTrainedModel, before adapters.*; got LlamaDecoderLayer"),
])  # fmt: skip
def test_misuse_leaves_the_model_as_it_was(call, error, message):
    model, ids = vanilla(), tokens()
    before, kinds, keys = model(ids).logits, list(map(type, model.modules())), list(model.state_dict())
    with pytest.raises(error, match=message):
        call(model)
    assert list(map(type, model.modules())) == kinds
    assert list(model.state_dict()) == keys
    assert torch.equal(model(ids).logits, before)
    assert not hasattr(model.config, "dynaconv")


def test_other_misuse():
    with pytest.raises(ValueError, match="has short convolutions already: call dynaconv.ungraft first"):
        dynaconv.graft(dynaconv.graft(vanilla()))
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "state_size": 4}
    mamba = AutoModelForCausalLM.from_config(AutoConfig.for_model("mamba", **sizes))
    with pytest.raises(ValueError, match="layout that is not known, MambaForCausalLM: it has in_proj, x_proj.*known are q_proj, k_proj, v_proj"):  # fmt: skip
        dynaconv.graft(mamba)
    xlnet = AutoModelForCausalLM.from_config(AutoConfig.for_model("xlnet", d_model=32, n_layer=1, n_head=4, d_inner=32))
    with pytest.raises(ValueError, match="cannot have short convolutions, XLNetLMHeadModel: its projections are"):
        dynaconv.graft(xlnet)


def test_what_would_not_take_effect_is_refused():
    model = vanilla()
    model.model.layers[1].self_attn.q_proj.forward = torch.nn.Identity().forward
    with pytest.raises(
        ValueError, match="forward of Linear was replaced, by device_map, offloading or a patch: graft before"
    ):
        dynaconv.graft(model)
    inner, outer = dynaconv.graft(vanilla()), vanilla()
    outer.model = inner.model
    with pytest.raises(ValueError, match="has short convolutions already"):
        dynaconv.graft(outer)
    model = dynaconv.graft(vanilla())
    layer = model.model.layers[0]
    layer.__class__ = type("FSDPLayer", (type(layer),), {})
    kinds = list(map(type, model.modules()))
    with pytest.raises(ValueError, match="FSDPLayer was changed after the graft"):
        dynaconv.ungraft(model)
    assert list(map(type, model.modules())) == kinds
    with pytest.raises(ValueError, match="exactly one of input_ids or inputs_embeds"):
        dynaconv.graft(vanilla())()


def test_a_part_called_on_its_own_is_refused():
    model, x = grafted(), torch.randn(2, 5, 32)
    with pytest.raises(RuntimeError, match="q_proj with a short convolution must be called by its decoder layer"):
        model.model.layers[0].self_attn.q_proj(x)
    with pytest.raises(RuntimeError, match="LlamaDecoderLayer with short convolutions must be called by the decoder"):
        model.model.layers[0](x)


@torch.no_grad()
def test_tokens_before_rows_are_refused():
    """As some models have them; as many numbers, in another order."""
    model = grafted()
    for name in ("q_proj", "k_proj", "v_proj"):
        linear = model.model.layers[0].self_attn.get_submodule(name)
        linear.register_forward_pre_hook(lambda module, inputs: inputs[0].transpose(0, 1).contiguous())
    with pytest.raises(RuntimeError, match=r"q_proj.*must see a sequence, \[2, 13\] tokens; got \[13, 2, 32\]"):
        model(tokens())


@torch.no_grad()
def test_a_site_that_is_passed_over_or_called_twice_is_noticed():
    """As by who goes past `setattr` to put a module of their own in the place of a linear layer."""
    model, ids = grafted(), tokens()
    model.model.layers[1].self_attn._modules["k_proj"] = torch.nn.Linear(32, 16, bias=False)
    with pytest.raises(RuntimeError, match="LlamaDecoderLayer has not called self_attn.k_proj, whose outputs have"):
        model(ids)
    model = grafted()
    model.model.layers[0].self_attn.k_proj = model.model.layers[0].self_attn.v_proj
    with pytest.raises(RuntimeError, match="self_attn.v_proj with a short convolution must be called once"):
        model(ids)
