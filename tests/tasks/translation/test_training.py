"""Training from the command line: what a run folder holds, resuming after a kill, a full disk, and mistakes."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

import dynaconv.models  # noqa: F401 (registers our models with the Auto classes)
from dynaconv.training.checkpoints import checkpoints

from ...conftest import run_cli, run_on_two_processes, start_cli, write_recipe

SHORT = {
    "max_steps": 60,
    "save_steps": 10,
    "eval_steps": 30,
    "eval_sentences": 4,
    "warmup_steps": 10,
    "accumulation": 2,
}
DROPOUT = {"dropout": 0.1, "weight_dropout": 0.1}


def test_run_folder(toy_run):
    names = {path.name for path in toy_run.iterdir()}
    assert names >= {
        "recipe.yaml",
        "versions.json",
        "history.json",
        "curves.png",
        "tensorboard",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "valid.tsv",
        "test.tsv",
        "checkpoint-200",
        "checkpoint-300",
    }
    assert not names & {"incomplete", "checkpoint-100"}
    assert json.loads((toy_run / "versions.json").read_text())["torch"] == torch.__version__
    history = json.loads((toy_run / "history.json").read_text())
    assert any(entry.get("tokens_per_second", 0) > 0 for entry in history)
    losses = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    assert losses[-1] < 0.1 < next(entry["loss"] for entry in history if "loss" in entry)
    assert list((toy_run / "tensorboard").iterdir())


def test_the_model_is_the_average_of_the_last_checkpoints(toy_run):
    weights = [load_file(toy_run / name / "model.safetensors") for name in ("checkpoint-200", "checkpoint-300", "")]
    for name, averaged in weights[2].items():
        torch.testing.assert_close(averaged, (weights[0][name] + weights[1][name]) / 2)
    assert AutoModelForSeq2SeqLM.from_pretrained(toy_run).config.encoder_mixer == "dynamic"
    assert AutoTokenizer.from_pretrained(toy_run)("rote Hunde")["input_ids"][-1] == 2


def start(recipe, run, cache, *options):
    environment = {**os.environ, "DYNACONV_CACHE": str(cache)}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return start_cli("train", recipe, "--output", run, *options, env=environment, **pipes)


@pytest.mark.slow
def test_killed_five_times_ends_with_the_same_bits(tmp_path, cache):
    recipe = write_recipe(tmp_path, train=SHORT, model=DROPOUT)
    assert run_cli("train", recipe, "--output", tmp_path / "whole", cache=cache).returncode == 0
    rng, killed, run = random.Random(0), 0, tmp_path / "killed"
    for attempt in range(5):
        process = start(recipe, run, cache, *["--resume"][: attempt > 0])
        target = 10 * attempt + 5  # a step between two checkpoints, or while one is written
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            found = checkpoints(run)
            if (found and int(found[-1].name.split("-")[1]) >= target - 5) or (
                attempt == 0 and (run / "recipe.yaml").exists()
            ):
                break
            time.sleep(0.02)
        time.sleep(rng.random() * 1.5)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.wait()
    assert killed >= 4
    result = run_cli("train", recipe, "--output", run, "--resume", cache=cache)
    assert result.returncode == 0, result.stderr[-2000:]
    for name in ("", "checkpoint-60"):
        whole, resumed = (load_file(folder / name / "model.safetensors") for folder in (tmp_path / "whole", run))
        assert all(torch.equal(whole[key], resumed[key]) for key in whole)


@pytest.mark.slow
def test_two_processes(tmp_path, cache):
    """Data-parallel training: two processes with one batch each take the steps of one process with two batches."""
    options = SHORT | {"max_steps": 20, "save_steps": 10, "eval_steps": 10, "accumulation": 1}
    recipe = write_recipe(
        tmp_path, train=options, model={"dropout": 0.0, "input_dropout": 0.0, "attention_dropout": 0.0}
    )
    arguments = ["-m", "dynaconv", "train", recipe, "--output", tmp_path / "two"]
    environment = {"DYNACONV_CACHE": str(cache)}
    run_on_two_processes(*arguments, environment=environment)
    assert (
        run_cli("train", recipe, "--output", tmp_path / "one", "--train.accumulation", 2, cache=cache).returncode == 0
    )
    histories = [json.loads((tmp_path / name / "history.json").read_text()) for name in ("two", "one")]
    losses = [[entry["eval_loss"] for entry in history if "eval_loss" in entry] for history in histories]
    # In the middle of the second epoch again: the batches must be those that the run would have seen.
    weights = load_file(tmp_path / "two" / "model.safetensors")
    for name in ("checkpoint-20", "history.json", "curves.png", "model.safetensors"):
        path = tmp_path / "two" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    run_on_two_processes(*arguments, "--resume", environment=environment)
    resumed = load_file(tmp_path / "two" / "model.safetensors")
    assert all(torch.equal(weights[key], resumed[key]) for key in weights)
    alone = run_cli("train", recipe, "--output", tmp_path / "two", "--resume", cache=cache)
    assert alone.returncode == 2
    assert "was started with 2 processes and cannot go on with 1" in alone.stderr
    # Measured: 1.1e-3. Adam's first steps turn rounding errors of tiny gradients into steps of the full learning rate.
    assert losses[0] == pytest.approx(losses[1], rel=3e-3)


def test_other_seeds_give_other_bits(tmp_path, cache):
    """The control for the test above: equality is not for free."""
    weights = []
    for seed in (1, 2):
        recipe = write_recipe(tmp_path, train=SHORT | {"max_steps": 2, "save_steps": 2, "eval_steps": 5, "seed": seed})
        assert run_cli("train", recipe, "--output", tmp_path / str(seed), cache=cache).returncode == 0
        weights.append(load_file(tmp_path / str(seed) / "model.safetensors"))
    assert not all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_interrupted_by_hand(tmp_path, cache):
    recipe = write_recipe(tmp_path, train=SHORT | {"max_steps": 5000})
    process = start(recipe, tmp_path / "run", cache)
    while not checkpoints(tmp_path / "run") and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert checkpoints(tmp_path / "run")


def test_full_disk(tmp_path, cache):
    """No file may grow beyond the size of the tokenizer: a checkpoint cannot be written, and says so; then it can."""
    recipe = write_recipe(tmp_path, train=SHORT | {"max_steps": 20, "eval_steps": 100})
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (60000, resource.RLIM_INFINITY))  # noqa: E731
    small = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))  # noqa: E731
    result = run_cli("data", recipe, "--data.seed", 5, cache=cache, preexec_fn=small)
    assert result.returncode == 2
    assert "prepared cannot be written" in result.stderr.splitlines()[-1]
    assert run_cli("data", recipe, cache=cache).returncode == 0
    result = run_cli("train", recipe, "--output", tmp_path / "run", cache=cache, preexec_fn=limit)
    assert result.returncode == 2
    assert "checkpoint-10 could not be written" in result.stderr
    assert "free some disk space" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert checkpoints(tmp_path / "run") == []
    assert run_cli("train", recipe, "--output", tmp_path / "run", "--resume", cache=cache).returncode == 0


def test_mistakes_lose_nothing(toy_run, tmp_path, cache):
    before = (toy_run / "model.safetensors").read_bytes()
    recipe = toy_run / "recipe.yaml"
    cases = {
        ("train", recipe, "--output", toy_run): "already holds a run: add --resume to go on with it",
        ("train", recipe, "--output", toy_run, "--resume", "--train.seed", "9"): "train.seed: 1 -> 9",
        ("train", recipe, "--output", tmp_path / "x", "--model.d_model", "30"): "must be divisible by encoder_heads",
        (
            "train",
            recipe,
            "--output",
            tmp_path / "x",
            "--model.encoder_kernel_sizes",
            "3",
            "5",
            "7",
        ): "got 3: [3, 5, 7]",
        ("train", recipe, "--output", tmp_path / "x", "--train.max_tokens", "5"): "raise max_tokens",
        ("train", tmp_path / "absent.yaml"): "no recipe",
        ("train", recipe, "--output", tmp_path / "x", "--train.max_steps", "0"): "greater than or equal to 1; got 0",
        ("train", "--output", tmp_path / "x", recipe): "give the recipe first: dynaconv train RECIPE.yaml",
        ("trian",): "no command 'trian': there are train",
    }
    for arguments, message in cases.items():
        result = run_cli(*arguments, cache=cache)
        assert result.returncode == 2
        assert message in result.stderr.splitlines()[-1], result.stderr
        assert "Traceback" not in result.stderr
    misspelt = run_cli("train", recipe, "--train.lerning_rate", "1", cache=cache)
    assert misspelt.returncode == 2
    assert "learning" in misspelt.stderr + misspelt.stdout
    assert (toy_run / "model.safetensors").read_bytes() == before


def test_other_data_is_refused(tmp_path, cache):
    """Another vocabulary under the same weights would be nonsense, and the held-out text would be training text."""
    recipe = write_recipe(tmp_path, train=SHORT | {"max_steps": 2, "save_steps": 2, "eval_steps": 5})
    run = tmp_path / "run"
    assert run_cli("train", recipe, "--output", run, cache=cache).returncode == 0
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    with (tmp_path / "train.tsv").open("a", encoding="utf-8") as file:
        file.write("sechs gelbe Hunde\tsix yellow dogs\n")
    result = run_cli("train", recipe, "--output", run, "--resume", cache=cache)
    assert result.returncode == 2
    assert "was started with other data" in result.stderr
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


def test_killed_behind_the_last_checkpoint(tmp_path, cache):
    recipe = write_recipe(tmp_path, train=SHORT | {"max_steps": 4, "save_steps": 2, "eval_steps": 2, "log_steps": 1})
    run = tmp_path / "run"
    assert run_cli("train", recipe, "--output", run, cache=cache).returncode == 0
    history = json.loads((run / "history.json").read_text())
    for name in ("history.json", "curves.png", "model.safetensors"):
        (run / name).unlink()
    (run / "deleting-checkpoint-1").mkdir()
    assert run_cli("train", recipe, "--output", run, "--resume", cache=cache).returncode == 0
    assert {"curves.png", "model.safetensors"} <= {path.name for path in run.iterdir()}
    losses = [
        [e["loss"] for e in log if "loss" in e] for log in (history, json.loads((run / "history.json").read_text()))
    ]
    assert losses[0] == losses[1]


def test_resuming_a_finished_run_changes_nothing(toy_run, cache):
    before = (toy_run / "model.safetensors").read_bytes()
    assert run_cli("train", toy_run / "recipe.yaml", "--output", toy_run, "--resume", cache=cache).returncode == 0
    assert (toy_run / "model.safetensors").read_bytes() == before


def test_going_on_from_a_trained_model(toy_run, tmp_path, cache):
    """With its vocabularies and weights, on other data; values of the recipe that do not fit are refused."""
    recipe = write_recipe(
        tmp_path, train=SHORT | {"max_steps": 1, "save_steps": 1, "eval_steps": 1, "learning_rate": 1e-9}
    )
    folder = ("--model.folder", toy_run, "--data.seed", "7")
    result = run_cli("train", recipe, "--output", tmp_path / "more", *folder, cache=cache)
    assert result.returncode == 0, result.stderr[-2000:]
    assert (tmp_path / "more" / "tokenizer.json").read_text() == (toy_run / "tokenizer.json").read_text()
    before, after = (load_file(run / "model.safetensors") for run in (toy_run, tmp_path / "more"))
    assert all(torch.allclose(before[name], after[name], atol=1e-7) for name in before)
    refused = run_cli("train", recipe, "--output", tmp_path / "x", *folder, "--model.d_model", "64", cache=cache)
    assert refused.returncode == 2
    assert f"the model in {toy_run} cannot be loaded" in refused.stderr.splitlines()[-1]
    assert not (tmp_path / "x").exists()


@pytest.mark.skipif(find_spec("MeCab") is not None, reason="sacreBLEU can cut Japanese here")
def test_what_scores_need_is_looked_for_first(toy_run, tmp_path, cache):
    result = run_cli(
        "train", toy_run / "recipe.yaml", "--output", tmp_path / "x", "--data.target_lang", "ja", cache=cache
    )
    assert result.returncode == 2
    assert "pip install sacrebleu[ja]" in result.stderr.splitlines()[-1]
