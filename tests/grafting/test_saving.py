"""Grafted models saved and loaded."""

import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

import dynaconv

from .support import assert_close, grafted, tokens, vanilla


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
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / family).eval()
        assert torch.equal(plain(tokens()).logits, dynaconv.ungraft(model)(tokens()).logits)


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
        ({"placement": "qkv", "model": 1}, "dynaconv in the config.json of .* must have"),
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
