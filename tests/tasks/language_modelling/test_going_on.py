"""Runs that go on: with a damaged checkpoint, for more updates, in another place, after a start that failed,
or end early."""

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file

from dynaconv.training.checkpoints import checkpoints, step_of

from .support import write_recipe

TRAIN = {"max_steps": 30, "save_steps": 10, "eval_steps": 30, "log_steps": 5, "schedule": "inverse_sqrt"}


@pytest.fixture
def whole(command, tmp_path):
    """A finished run, its recipe, and how to go on in a copy of it."""
    recipe = write_recipe(tmp_path, train=TRAIN)
    command("train", recipe, "--output", tmp_path / "whole")

    def interrupted(name):
        run = shutil.copytree(tmp_path / "whole", tmp_path / name)
        for done in ("model.safetensors", "curves.png"):
            (run / done).unlink()
        return run

    return recipe, tmp_path / "whole", interrupted


def assert_same(a, b):
    a, b = (load_file(run / "model.safetensors") for run in (a, b))
    assert all(torch.equal(a[name], b[name]) for name in a)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_damaged_checkpoint_gives_way_to_the_one_before(whole, command, capsys, caplog):
    recipe, expected, interrupted = whole
    for name, damage, fault in (
        ("optimizer.pt", cut, "optimizer.pt is damaged"),
        ("model.safetensors", cut, "model.safetensors is damaged"),
        ("trainer_state.json", cut, "trainer_state.json is damaged"),
        ("rng_state.pth", lambda path: path.unlink(), "it has no rng_state.pth"),
    ):
        run = interrupted(name)
        damage(run / "checkpoint-30" / name)
        command("train", recipe, "--output", run, "--resume")
        assert f"checkpoint-30 cannot be gone on from: {fault}" in caplog.text
        caplog.clear()
        assert_same(run, expected)
    (run / "model.safetensors").unlink()
    for checkpoint in run.glob("checkpoint-*"):
        (checkpoint / "scheduler.pt").unlink()
    with pytest.raises(SystemExit):
        command("train", recipe, "--output", run, "--resume")
    assert "can be gone on from: use another --output" in capsys.readouterr().err
    assert not (run / "model.safetensors").exists()


def test_more_updates(whole, command, tmp_path, capsys):
    recipe, expected, _ = whole
    run = tmp_path / "extended"
    command("train", recipe, "--output", run, "--train.max_steps", "20")
    command("train", recipe, "--output", run, "--resume")
    assert_same(run, expected)
    assert yaml.safe_load((run / "recipe.yaml").read_text())["train"]["max_steps"] == 30
    with pytest.raises(SystemExit):
        command("train", recipe, "--output", run, "--resume", "--train.max_steps", "25")
    assert "train.max_steps: 30 -> 25" in capsys.readouterr().err
    assert (run / "curves.png").exists()
    assert not (run / "earlier.safetensors").exists()


def test_more_updates_behind_a_damaged_checkpoint(whole, command, tmp_path, capsys):
    """It is of an update whose checkpoint is not written again."""
    recipe, expected, _ = whole
    run = tmp_path / "extended"
    command("train", recipe, "--output", run, "--train.max_steps", "15")
    cut(run / "checkpoint-15" / "model.safetensors")
    command("train", recipe, "--output", run, "--resume")
    assert_same(run, expected)
    assert (run / "damaged-checkpoint-15").is_dir()
    assert [step_of(path) for path in checkpoints(run)] == [20, 30]
    for path in checkpoints(run):
        shutil.rmtree(path)
    with pytest.raises(SystemExit):
        command("train", recipe, "--output", run, "--resume")
    assert "has its model, but no checkpoint to go on from" in capsys.readouterr().err
    assert_same(run, expected)


def test_in_another_place(whole, command, tmp_path, capsys):
    """The run folder and the data have moved; other data is refused, wherever it is."""
    recipe, expected, interrupted = whole
    run = interrupted("before")
    shutil.rmtree(run / "checkpoint-30")
    run = run.rename(tmp_path / "after")
    text = (tmp_path / "text.txt").rename(tmp_path / "moved.txt")
    command("train", recipe, "--output", run, "--resume", "--data.train", text)
    assert_same(run, expected)
    text.write_text(text.read_text() + "More text than there was.\n")
    with pytest.raises(SystemExit):
        command("train", recipe, "--output", run, "--resume", "--data.train", text)
    assert "was started with other data" in capsys.readouterr().err


def test_a_start_that_failed_makes_no_run(whole, command, tmp_path, monkeypatch):
    recipe, expected, _ = whole
    run = tmp_path / "failed"
    with monkeypatch.context() as patched:
        patched.setattr("dynaconv.training.trainer.TokenTrainer.training_step", fail)
        with pytest.raises(SystemExit):
            command("train", recipe, "--output", run, "--train.learning_rate", "0.5")
    assert (run / "recipe.yaml").exists()
    command("train", recipe, "--output", run)
    assert_same(run, expected)


def fail(*arguments, **options):
    raise RuntimeError("out of memory")


def test_patience_ends_training(command, tmp_path, caplog):
    recipe = write_recipe(tmp_path, train=TRAIN | {"eval_steps": 5, "patience": 2, "learning_rate": 1e-12})
    run = tmp_path / "run"
    command("train", recipe, "--output", run)
    assert [path.name for path in checkpoints(run)] == ["checkpoint-10", "checkpoint-15"]
    log = json.loads((run / "history.json").read_text())
    assert [entry["step"] for entry in log if "eval_loss" in entry] == [5, 10, 15]
    before = (run / "model.safetensors").read_bytes()
    command("train", recipe, "--output", run, "--resume")
    assert (run / "model.safetensors").read_bytes() == before
    assert len(checkpoints(run)) == 2
    assert "training ended early, at update 15" in caplog.text
    command("train", recipe, "--output", run, "--resume", "--train.patience", "0")
    assert checkpoints(run)[-1].name == "checkpoint-30"


def test_the_best_checkpoint_is_kept(command, tmp_path, capsys):
    """The rate rises until a later checkpoint is worse than an earlier one."""
    rising = {"warmup_steps": 30, "learning_rate": 3.0, "clip_norm": 0.0}
    recipe = write_recipe(tmp_path, train=TRAIN | rising | {"eval_steps": 5, "save_steps": 5, "best": True})
    run = tmp_path / "run"
    command("train", recipe, "--output", run)
    log = json.loads((run / "history.json").read_text())
    losses = {entry["step"]: entry["eval_loss"] for entry in log if "eval_loss" in entry}
    best = min(losses, key=losses.get)
    assert best < 20
    assert [step_of(path) for path in checkpoints(run)] == [best, 25, 30]
    expected = load_file(run / f"checkpoint-{best}" / "model.safetensors")
    found = load_file(run / "model.safetensors")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    with pytest.raises(SystemExit):
        command("train", recipe, "--output", tmp_path / "x", "--train.eval_steps", "3", "--dry-run")
    assert "train.best needs save_steps to be a multiple of eval_steps; got 5, 3" in capsys.readouterr().err
