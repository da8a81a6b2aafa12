"""`dynaconv recall`: what it trains, shows and keeps."""

import json
from dataclasses import replace

import pytest

from dynaconv.tasks.recall.recall import PRESETS, print_results
from dynaconv.tasks.recall.training import Experiment, train_once

from ...conftest import run_cli

EASY = Experiment(
    "variable_key", {"classes": 1, "class_size": 12, "values": 8, "pairs": 4}, 1000, 100, 32, steps=150, batch=32
)


def nothing() -> None:
    pass


def test_a_task_that_needs_one_step_back_is_learned_with_a_convolution_only():
    """Keys of one token: the value must know the key before it, in one layer."""
    found = {name: train_once(EASY, name, 1, "cpu", nothing)["accuracy"][-1][1] for name in ("none", "lowrank")}
    assert found["none"] < 0.5
    assert found["lowrank"] > 0.95


def test_runs_are_the_same_for_a_seed():
    short = Experiment("mqar", {"vocab_size": 64}, 100, 20, 32, steps=3, batch=8, tests=1)
    first, again, other = (train_once(short, "lowrank", seed, "cpu", nothing) for seed in (1, 1, 2))
    assert first == again
    assert first["accuracy"] != other["accuracy"] or first["parameters"] == other["parameters"]


def test_a_run_that_diverges_says_when():
    wild = Experiment("mqar", {"vocab_size": 64}, 100, 20, 32, steps=30, batch=8, learning_rate=1e30)
    assert train_once(wild, "none", 1, "cpu", nothing)["diverged"] < 30


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_make_sequences(preset):
    found = replace(PRESETS[preset], train_size=2, test_size=2).sequences(1)
    assert {len(inputs) for inputs, _ in found.values()} == {2}


def test_a_diverged_run_is_in_the_table(capsys):
    run = {"parameters": 10, "seconds": 1.0, "accuracy": [(5, 0.5)], "seed": 1, "diverged": None}
    print_results("x", {"none": [run, {**run, "seed": 2, "diverged": 7}], "static": [{**run, "diverged": 3}]})
    shown = capsys.readouterr().out
    assert "none, seed 2: diverged at update 7" in shown
    assert "static, seed 1: diverged at update 3" in shown


@pytest.mark.slow
def test_on_the_command_line(tmp_path, cache):
    options = (
        "recall",
        "--output",
        tmp_path / "out",
        "--steps",
        "5",
        "--seeds",
        "1",
        "--convolutions",
        "none",
        "lowrank",
    )
    result = run_cli(*options, cache=cache)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "lowrank" in result.stdout
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {name: [run["seed"] for run in runs] for name, runs in record["results"].items()} == {
        "none": [1],
        "lowrank": [1],
    }
    assert (tmp_path / "out" / "recall.png").stat().st_size > 5000
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*-?.json")}
    assert run_cli(*options, cache=cache).returncode == 0
    assert made == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*-?.json")}
    result = run_cli("recall", "--output", tmp_path / "out", "--steps", "6", cache=cache)
    assert result.returncode == 2
    assert "is of another experiment: choose another --output" in result.stderr
