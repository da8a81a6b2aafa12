"""Grafted models saved and loaded."""

import copy
import json
import pickle
import subprocess
import sys

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

import dynaconv
from dynaconv.grafting.loading import SavedGraft

from .support import assert_close, differs, grafted, tokens, vanilla


def test_saved_and_loaded_in_a_new_process(tmp_path):
    families = ("llama", "qwen3", "gemma3_text", "olmoe", "mixtral")
    torch.save(tokens(), tmp_path / "ids.pt")
    for family in families:
        grafted(family, "all_linear").save_pretrained(tmp_path / family)
    code = (
        f"import sys, torch, dynaconv\ntorch.set_num_threads({torch.get_num_threads()})\nids = torch.load('ids.pt')\n"
        "models = [dynaconv.from_pretrained(name).eval() for name in sys.argv[1:]]\n"
        "torch.save([(model.state_dict(), model(ids).logits) for model in models], 'loaded.pt')"
    )
    subprocess.run([sys.executable, "-c", code, *families], check=True, cwd=tmp_path)
    for family, (weights, logits) in zip(families, torch.load(tmp_path / "loaded.pt")):
        model = grafted(family, "all_linear")
        expected = model.state_dict()
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
        assert_close(logits, model(tokens()).logits)
        auto = AutoModelForCausalLM.from_pretrained(tmp_path / family).eval()
        assert torch.equal(auto(tokens()).logits, model(tokens()).logits)
        assert differs(auto(tokens()).logits, dynaconv.ungraft(model)(tokens()).logits)


def test_no_loader_leaves_the_convolutions_out(tmp_path):
    """By the Auto classes with them; in a process that does not know of them, or by the host's class, not at all."""
    model, ids = grafted(), tokens()
    model.save_pretrained(tmp_path)
    backbone = AutoModel.from_pretrained(tmp_path).eval()
    assert_close(backbone(ids).last_hidden_state, model.model(ids).last_hidden_state)
    classifier = AutoModelForSequenceClassification.from_pretrained(
        tmp_path, num_labels=3
    ).eval()  # its backbone is made
    assert_close(classifier.model(ids).last_hidden_state, model.model(ids).last_hidden_state)  # by an Auto class
    classifier.save_pretrained(tmp_path / "classifier")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "classifier").eval()
    assert torch.equal(loaded(ids).logits, classifier(ids).logits)
    assert any("short_convs" in name for name, _ in AutoModelForCausalLM.from_config(model.config).named_parameters())
    with pytest.raises(Exception, match="this model has short convolutions: import dynaconv.grafting"):
        LlamaForCausalLM.from_pretrained(tmp_path)
    code = "from transformers import AutoModelForCausalLM as auto; auto.from_pretrained('.')"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1
    assert "model type `dynaconv_graft`" in result.stderr
    with pytest.raises(ValueError, match="config.json must have the host"):
        SavedGraft.from_dict({"model_type": "dynaconv_graft", "host": {"type": "absent", "config": {}}})


def test_tensor_parallelism_is_refused(tmp_path):
    grafted().save_pretrained(tmp_path)
    for load in (dynaconv.from_pretrained, AutoModelForCausalLM.from_pretrained):
        with pytest.raises(ValueError, match="load it without tensor parallelism"):
            load(tmp_path, tp_plan="auto")


def test_a_configuration_is_the_host_s_in_memory(tmp_path):
    model = grafted()
    for config in (model.config, copy.deepcopy(model.config), pickle.loads(pickle.dumps(model.config))):
        assert isinstance(config, LlamaConfig)
        assert config.model_type == "llama"
        assert config.dynaconv["placement"] == "qkv"
    model.save_pretrained(tmp_path)
    # What PEFT does to compare vocabularies.
    assert type(model.config).from_pretrained(tmp_path).vocab_size == 61
    assert type(dynaconv.ungraft(model).config) is LlamaConfig
    model.save_pretrained(tmp_path)
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path)) is LlamaForCausalLM


def test_as_saved_before_configurations_had_a_type_of_their_own(tmp_path):
    model = grafted()
    model.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(content["host"]["config"] | {"dynaconv": content["dynaconv"]}))
    assert_close(dynaconv.from_pretrained(tmp_path).eval()(tokens()).logits, model(tokens()).logits)


def test_what_takes_the_place_of_a_convolved_layer_is_seen_when_it_is_loaded(tmp_path, monkeypatch):
    """As by who goes past `setattr`."""
    grafted().save_pretrained(tmp_path)
    load = LlamaForCausalLM.from_pretrained.__func__

    def quantized(cls, *args, **kwargs):
        model, info = load(cls, *args, **kwargs)
        model.model.layers[1].self_attn._modules["v_proj"] = torch.nn.Linear(32, 16)
        return model, info

    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", classmethod(quantized))
    with pytest.raises(ValueError, match="a Linear has taken the place of self_attn.v_proj, whose output has a short"):
        dynaconv.from_pretrained(tmp_path)


def test_loading_says_what_is_missing(tmp_path):
    vanilla().save_pretrained(tmp_path / "vanilla")
    with pytest.raises(
        ValueError,
        match="was not saved with convolutions from dynaconv.graft: load it with transformers.AutoModelForCausalLM",
    ):
        dynaconv.from_pretrained(tmp_path / "vanilla")
    model = grafted()
    weights = {name: tensor for name, tensor in model.state_dict().items() if "basis" not in name}
    model.save_pretrained(tmp_path / "part", state_dict=weights)
    with pytest.raises(
        ValueError, match=r"lacks 6 parameters of short convolutions that its config.json tells of: model.layers.0"
    ):
        dynaconv.from_pretrained(tmp_path / "part")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"placement": "qkv", "model": 1}, "dynaconv in config.json must have head_dim, "),
        ("yes", "got 'yes'"),
        ({"rank": "3"}, "rank must be int; got '3'"),
        ({"placement": 5}, "placement must be letters"),
    ],
)
def test_hostile_checkpoints(tmp_path, entry, message):
    model = dynaconv.graft(vanilla())
    model.config.dynaconv = entry
    model.save_pretrained(tmp_path)
    with pytest.raises((ValueError, TypeError), match=message):
        dynaconv.from_pretrained(tmp_path)


def test_loading_takes_the_keywords_of_transformers(tmp_path):
    model = grafted()
    model.save_pretrained(tmp_path / "sub", max_shard_size="20KB")
    loaded, info = dynaconv.from_pretrained(
        tmp_path,
        subfolder="sub",
        dtype=torch.bfloat16,
        attn_implementation="eager",
        use_cache=False,
        output_loading_info=True,
    )
    assert loaded.dtype == torch.bfloat16
    assert loaded.config.use_cache is False
    assert not info["missing_keys"]
    torch.testing.assert_close(loaded.eval()(tokens()).logits.float(), model(tokens()).logits, rtol=0.1, atol=0.1)
    for name in ("dtype", "torch_dtype"):  # the second is the older name
        assert dynaconv.from_pretrained(tmp_path, subfolder="sub", **{name: "auto"}).dtype == torch.float32
    assert torch.equal(
        dynaconv.from_pretrained(tmp_path / "sub", config=tmp_path / "sub").lm_head.weight, model.lm_head.weight
    )
