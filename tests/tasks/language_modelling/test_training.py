"""Training language models: networks of ours and of transformers, packed or not, resumed, diverging."""

import json
import math
import signal
import time

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import dynaconv
from dynaconv.tasks.language_modelling.network import build, check_causal
from dynaconv.tasks.language_modelling.recipe import GraftConfig, ModelConfig
from dynaconv.training.checkpoints import checkpoints

from ...conftest import start_cli
from .support import write_recipe

LLAMA = {
    "host": "llama",
    "config": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
}
LIGHTCONV = {
    "host": "dynaconv_lightconv_lm",
    "config": {
        "d_model": 32,
        "decoder_layers": 2,
        "decoder_kernel_sizes": 3,
        "decoder_heads": 2,
        "decoder_ffn_dim": 32,
        "adaptive_input_cutoffs": [8, 14],
        "adaptive_softmax_cutoffs": [8, 14],
        "tie_word_embeddings": True,
    },
}


def evaluations(run):
    return [entry for entry in json.loads((run / "history.json").read_text()) if "eval_loss" in entry]


def test_from_text_to_perplexity(command, tmp_path):
    recipe, run = write_recipe(tmp_path), tmp_path / "run"
    command("train", recipe, "--output", run)
    assert {"valid.txt", "test.txt", "tokenizer.json", "curves.png", "model.safetensors"} <= {
        p.name for p in run.iterdir()
    }
    last = evaluations(run)[-1]
    assert last["eval_loss"] < 2.5 < math.log(200)
    assert last["eval_perplexity"] == pytest.approx(math.exp(last["eval_loss"]), rel=1e-4)
    logged = next(entry for entry in json.loads((run / "history.json").read_text()) if "flops_per_second" in entry)
    model = AutoModelForCausalLM.from_pretrained(run)
    per_label = 3 * dynaconv.models.count(model.config, 32).forward_flops * 32 / 31  # the first token has no label
    assert logged["flops_per_second"] / logged["tokens_per_second"] == pytest.approx(
        per_label, rel=0.03
    )  # convolutions have more backwards
    # Documents that are cut at the ends of rows lose some of their context: the numbers are near each other, not equal.
    command("perplexity", run, run / "valid.txt", "--sequences", "line", "--json", tmp_path / "p.json")
    found = json.loads((tmp_path / "p.json").read_text())
    assert found["perplexity per token"] == pytest.approx(last["eval_perplexity"], rel=0.1)
    assert found["bits per byte"] == pytest.approx(last["eval_bits_per_byte"], rel=0.1)


@pytest.mark.parametrize("kind", ["lowrank", "static"])
def test_a_grafted_model_of_transformers(command, tmp_path, kind):
    recipe = write_recipe(tmp_path, model={**LLAMA, "graft": {"placement": "qkv", "kind": kind, "rank": 4}})
    command("train", recipe, "--output", tmp_path / "run", "--dry-run")
    command("train", recipe, "--output", tmp_path / "run")
    model = dynaconv.from_pretrained(tmp_path / "run")
    assert model.config.dynaconv["kind"] == kind
    assert evaluations(tmp_path / "run")[-1]["eval_loss"] < 2.5


def test_a_trained_model_gets_convolutions_and_goes_on(command, tmp_path):
    command("train", write_recipe(tmp_path, model=LLAMA), "--output", tmp_path / "plain")
    (tmp_path / "second").mkdir()
    sections = {
        "model": {"folder": str(tmp_path / "plain"), "graft": {"placement": "qkv", "init": "identity"}},
        "train": {"max_steps": 2, "eval_steps": 1, "save_steps": 2, "log_steps": 1, "learning_rate": 1e-9},
    }
    recipe = write_recipe(tmp_path / "second", **sections)
    command("train", recipe, "--output", tmp_path / "grafted")
    before, after = evaluations(tmp_path / "plain")[-1], evaluations(tmp_path / "grafted")[0]
    assert after["eval_loss"] == pytest.approx(before["eval_loss"], rel=1e-5)
    assert (tmp_path / "grafted" / "tokenizer.json").read_text() == (tmp_path / "plain" / "tokenizer.json").read_text()
    assert dynaconv.from_pretrained(tmp_path / "grafted").config.dynaconv["placement"] == "qkv"
    # The grafted run can be gone on from as well.
    (tmp_path / "third").mkdir()
    sections["model"] = {"folder": str(tmp_path / "grafted")}
    command("train", write_recipe(tmp_path / "third", **sections), "--output", tmp_path / "again")
    assert evaluations(tmp_path / "again")[0]["eval_loss"] == pytest.approx(before["eval_loss"], rel=1e-5)


def test_the_language_model_of_2019(command, tmp_path):
    recipe = write_recipe(
        tmp_path, model=LIGHTCONV, data={"rows": "documents"}, tokenizer={"kind": "words", "vocab_size": 300}
    )
    command("train", recipe, "--output", tmp_path / "run", "--dry-run")
    command("train", recipe, "--output", tmp_path / "run")
    last = evaluations(tmp_path / "run")[-1]["eval_perplexity"]
    command(
        "perplexity", tmp_path / "run", tmp_path / "run" / "valid.txt", "--sequences", "line", "--json", tmp_path / "p"
    )
    assert json.loads((tmp_path / "p").read_text())["perplexity per token"] == pytest.approx(last, rel=1e-4)


SIZES = {"vocab_size": 64, **LLAMA["config"], "hidden_size": 64}
PACKED = [
    ModelConfig("llama", config=SIZES),
    ModelConfig("qwen3", config={**SIZES, "num_key_value_heads": 2, "head_dim": 32}, graft=GraftConfig("all_linear")),
    ModelConfig("dynaconv", config={**SIZES, "mixer": "gated_deltanet", "placement": "mixer", "delta_head_dim": 16}),
    ModelConfig("dynaconv", config={**SIZES, "mixer": "mamba2", "placement": "mixer", "mamba_head_dim": 16}),
]


@pytest.mark.parametrize("model", PACKED, ids=lambda model: f"{model.host} {model.config.get('mixer', '')}")
def test_packed_documents_are_apart(model):
    check_causal(build(model, model.configuration()), packed=True)


@pytest.mark.parametrize(
    ("host", "message"),
    [("mamba2", "Mamba2ForCausalLM does not keep"), ("dynaconv_lightconv_lm", "LightConvForCausalLM does not keep")],
)
def test_a_model_that_mixes_packed_documents_is_refused(host, message):
    mamba = {"hidden_size": 32, "num_heads": 4, "head_dim": 16, "n_groups": 1, "num_hidden_layers": 1}
    config = LIGHTCONV["config"] if host != "mamba2" else mamba
    model = ModelConfig(host, config={**config, "vocab_size": 200})
    with pytest.raises(ValueError, match=message):
        check_causal(build(model, model.configuration()), packed=True)


def test_a_model_that_sees_what_it_should_predict_is_refused():
    model = ModelConfig("bert", config={**LLAMA["config"], "vocab_size": 64})
    with pytest.raises(ValueError, match="sees the tokens that it should predict"):
        check_causal(build(model, model.configuration()), packed=False)
    model.config["is_decoder"] = True
    check_causal(build(model, model.configuration()), packed=False)


def test_the_check_leaves_an_identity_as_it_is():
    model = ModelConfig("llama", config=SIZES, graft=GraftConfig("qkv", init="identity"))
    network = build(model, model.configuration())
    before = {name: p.clone() for name, p in network.named_parameters()}
    check_causal(network, packed=True)
    assert all(torch.equal(before[name], p) for name, p in network.named_parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model.host", "lama"), "did you mean llama"),
        (("--model.preset", "9b"), "no preset '9b'"),
        (("--model.config.num_attention_heads", "5"), "num_attention_heads"),
        (("--model.host", "t5"), "has no causal language model"),
        (("--data.train", "absent.txt"), "absent.txt"),
        (("--train.learning_rate", "inf"), "train.learning_rate: must be a finite number; got inf"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_trained(command, tmp_path, capsys, options, message):
    recipe = write_recipe(tmp_path, **({"model": {"config": {}}} if options[-1] == "t5" else {}))
    with pytest.raises(SystemExit) as ended:
        command("train", recipe, "--output", tmp_path / "run", *options)
    assert ended.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error
    assert not (tmp_path / "run").exists()


def test_an_unknown_value_of_a_configuration(tmp_path):
    with pytest.raises(ValueError, match="llama has no hiden_size: did you mean hidden_size"):
        ModelConfig("llama", config={"hiden_size": 3}).configuration()


def test_a_run_that_diverges_says_when_and_keeps_its_checkpoints(command, tmp_path, capsys):
    recipe = write_recipe(
        tmp_path, train={"clip_norm": 0.0, "save_steps": 2, "log_steps": 2, "warmup_steps": 0, "average_last": 9}
    )
    with pytest.raises(SystemExit) as ended:
        command("train", recipe, "--output", tmp_path / "run", "--train.learning_rate", "1e9")
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert "training diverged" in error
    assert "lower train.learning_rate" in error
    for checkpoint in checkpoints(tmp_path / "run"):
        assert all(tensor.isfinite().all() for tensor in load_file(checkpoint / "model.safetensors").values())
    assert json.loads((tmp_path / "run" / "diverged.json").read_text())["step"] <= 60


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bits(command, tmp_path):
    recipe = write_recipe(tmp_path, train={"save_steps": 10})
    command("train", recipe, "--output", tmp_path / "whole")
    process = start_cli("train", recipe, "--output", tmp_path / "killed")
    deadline = time.monotonic() + 300
    while len(checkpoints(tmp_path / "killed")) < 1 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    command("train", recipe, "--output", tmp_path / "killed", "--resume")
    whole, killed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == killed.keys()
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
