"""Sweeps: what is run, what is shown, interrupted and diverging ones."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

from dynaconv.cli import _check_content
from dynaconv.training.sweep import read_sweep, run_cells

from ..conftest import run_cli, start_cli
from ..tasks.language_modelling.support import write_recipe

GRID = {"model.config.conv": ["none", "lowrank"]}


def write_sweep(folder: Path, **content) -> Path:
    write_recipe(folder, train={"max_steps": 8, "save_steps": 4, "eval_steps": 8, "log_steps": 2, "warmup_steps": 0})
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({"recipe": "recipe.yaml", **content}), encoding="utf-8")
    return path


def test_every_combination_for_every_row(tmp_path):
    rows = [
        {"set": {"model.config.conv": "none"}, "paper": 19.12},
        {"set": {"model.config.conv": "lowrank", "model.config.conv_rank": 4}},
    ]
    path = write_sweep(
        tmp_path, rows=rows, grid={"train.learning_rate": [1e-3, 0.5]}, seeds=[1, 2], always={"train.max_steps": 3}
    )
    _, cells = read_sweep(path, _check_content, ("data.window=64",))
    assert [cell.name for cell in cells] == [
        "conv=none,learning_rate=0.001",
        "conv=none,learning_rate=0.5",
        "conv=lowrank,conv_rank=4,learning_rate=0.001",
        "conv=lowrank,conv_rank=4,learning_rate=0.5",
    ]
    assert [cell.paper for cell in cells] == [19.12, 19.12, None, None]
    recipe = cells[3].recipes[2]
    assert recipe.model.config["conv_rank"] == 4
    assert (recipe.train.learning_rate, recipe.train.seed, recipe.train.max_steps) == (0.5, 2, 3)
    assert recipe.data.window == 64
    assert cells[0].recipes[1].model.config["conv"] == "none"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"grids": {}}, "unknown key grids: did you mean grid"),
        ({"rows": [{"set": {}, "papre": 1}]}, "unknown key rows.0.papre: did you mean paper"),
        ({"grid": {"model.config.conv": ["none", "none"]}}, "configurations twice: conv=none"),
        ({"grid": {"train.max_steps.x": [1]}}, "max_steps is no section"),
        ({"recipe": "absent.yaml"}, "no recipe"),
        ({"grid": {"train.seed": [1, 2]}}, "train.seed is what seeds says"),
        ({"seeds": []}, "must not be empty"),
        ({"rows": [{"set": {"train.learnin_rate": 1}}]}, "unknown key train.learnin_rate: did you mean learning_rate"),
        ({"grid": {"model.config.conv": ["lowrank", "wide"]}}, "conv=wide"),
    ],
)
def test_mistakes(tmp_path, content, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_sweep(write_sweep(tmp_path, **content), _check_content)


@pytest.mark.slow
def test_interrupted_and_gone_on_with(tmp_path, cache):
    path, output = write_sweep(tmp_path, grid=GRID, seeds=[1, 2], title="Convolutions"), tmp_path / "out"
    environment = {**os.environ, "DYNACONV_CACHE": str(cache)}
    process = start_cli("sweep", path, "--output", output, "--workers", "2", env=environment)
    deadline = time.monotonic() + 300
    while not list(output.glob("*/model.safetensors")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    finished = {file: file.stat().st_mtime_ns for file in output.glob("*/model.safetensors")}
    assert 1 <= len(finished) < 4
    result = run_cli("sweep", path, "--output", output, "--workers", "2", cache=cache)
    assert result.returncode == 0, result.stderr[-2000:]
    assert all(file.stat().st_mtime_ns == changed for file, changed in finished.items())
    record = json.loads((output / "results.json").read_text())
    assert [row["values"] for row in record["results"]] == [
        {"model.config.conv": conv} for conv in GRID["model.config.conv"]
    ]
    losses = [[run["eval_loss"] for run in row["runs"]] for row in record["results"]]
    assert all(len(set(values)) == 2 for values in losses)
    assert "Convolutions" in result.stdout
    assert all(f"{sum(values) / 2:.3f}" in result.stdout for values in losses)
    assert all(f"{value:.3f}" in result.stdout for values in losses for value in values)
    assert {"sweep.png", "curves.png"} <= {file.name for file in output.iterdir()}


@pytest.mark.slow
def test_a_run_that_diverges_is_in_the_table_and_one_that_fails_ends_the_sweep(tmp_path, cache):
    grid = {"train.learning_rate": [1e-3, 1e9]}
    path = write_sweep(tmp_path, grid=grid, always={"train.clip_norm": 0.0})
    result = run_cli("sweep", path, "--output", tmp_path / "out", cache=cache)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "diverged at" in result.stdout
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    assert rows[0]["runs"][0]["diverged"] is None
    assert rows[1]["runs"][0]["diverged"] > 0
    assert "eval_loss" not in rows[1]["runs"][0]
    result = run_cli("sweep", path, "--output", tmp_path / "other", "--set", "data.train=absent.txt", cache=cache)
    assert result.returncode == 2
    assert "learning_rate=0.001,seed=1: dynaconv: error: no file" in result.stderr
    # Another value for all runs: those that are there were trained with another recipe.
    result = run_cli("sweep", path, "--output", tmp_path / "out", "--set", "train.max_tokens=128", cache=cache)
    assert result.returncode == 2
    assert "was started with another recipe (train.max_tokens: 256 -> 128)" in result.stderr


def test_names_tell_values_apart(tmp_path):
    row = {"set": {"model.config.conv_width": 3, "model.graft.width": 4, "model.graft.rank": 4}}
    _, cells = read_sweep(write_sweep(tmp_path, rows=[row]), _check_content)
    assert cells[0].name == "conv_width=3,rank=4,width=4"
    row["set"]["data.window"] = 32
    rows = [row, {"set": {"model.config.conv_rank": 8, "tokenizer.vocab_size": 300}}]
    assert len(read_sweep(write_sweep(tmp_path, rows=rows), _check_content)[1]) == 2


def test_a_second_sweep_in_the_same_folder_is_refused(tmp_path):
    _, cells = read_sweep(write_sweep(tmp_path), _check_content)
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".lock"), pytest.raises(ValueError, match="another process works in"):
        run_cells(cells, tmp_path / "out", 1)
