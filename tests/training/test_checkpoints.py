"""Checkpoints are whole or not there."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from dynaconv.training.checkpoints import (
    average_weights,
    checkpoints,
    keep_last,
    publish,
    save_averaged,
    step_of,
)


def make(folder, step, value):
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    save_file({"w": torch.full((3,), value), "n": torch.tensor([1.5, value]).bfloat16()}, path / "model.safetensors")
    return path


def test_order_and_rotation(tmp_path):
    for step in (5, 1000, 200):
        make(tmp_path, step, 1.0)
    (tmp_path / "deleting-checkpoint-1").mkdir()
    (tmp_path / "incomplete").mkdir()
    assert [step_of(path) for path in checkpoints(tmp_path)] == [5, 200, 1000]
    keep_last(tmp_path, 2)
    assert [step_of(path) for path in checkpoints(tmp_path)] == [200, 1000]
    with pytest.raises(ValueError, match="is not named checkpoint-STEP"):
        step_of(tmp_path / "incomplete")


def test_average(tmp_path):
    paths = [make(tmp_path, step, value) for step, value in ((1, 1.0), (2, 2.0), (3, 6.0))]
    mean = average_weights(paths)
    assert torch.equal(mean["w"], torch.full((3,), 3.0))
    assert mean["n"].dtype == torch.bfloat16
    save_averaged(paths, tmp_path / "model.safetensors")
    assert torch.equal(load_file(tmp_path / "model.safetensors")["w"], mean["w"])
    assert not list(tmp_path.glob("*.partial"))


def test_publishing_replaces_what_has_the_name(tmp_path):
    (tmp_path / "incomplete").mkdir()
    old, staged = make(tmp_path, 7, 1.0), make(tmp_path / "incomplete", 7, 2.0)
    publish(staged, old)
    assert not staged.exists()
    assert load_file(old / "model.safetensors")["w"][0] == 2
