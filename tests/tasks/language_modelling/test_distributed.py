"""Language models on two processes: the numbers of one, and what becomes of a job that loses a process."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
from safetensors.torch import load_file

from dynaconv.training.checkpoints import checkpoints

from ...conftest import run_on_two_processes
from . import two_processes
from .support import write_recipe

pytestmark = pytest.mark.slow


def losses(run, name):
    return [entry[name] for entry in json.loads((run / "history.json").read_text()) if name in entry]


def test_data_parallel_training_is_that_of_one_process(command, tmp_path):
    recipe = write_recipe(tmp_path, train={"max_steps": 20, "eval_steps": 20, "save_steps": 20, "log_steps": 1})
    arguments = ("-m", "dynaconv", "train", recipe, "--output", tmp_path / "two")
    run_on_two_processes(*arguments, environment={"DYNACONV_CACHE": str(tmp_path / "cache")})
    command("train", recipe, "--output", tmp_path / "one", "--train.accumulation", "2")
    for name, count in (("loss", 20), ("eval_loss", 1)):
        one, two = (losses(tmp_path / run, name) for run in ("one", "two"))
        assert len(one) == count
        assert one == pytest.approx(two, rel=1e-5)


def test_sharded_training_is_that_of_one_process(tmp_path):
    """FSDP2, over 20 updates."""
    rows = torch.randint(61, (5, 4, 13), generator=torch.Generator().manual_seed(1)).repeat(4, 1, 1)
    torch.save(rows, tmp_path / "rows.pt")
    run_on_two_processes(two_processes.__file__, cwd=tmp_path)
    expected = [loss.item() for loss in two_processes.train(two_processes.make_model(), rows)]
    assert expected[-1] < expected[0] - 0.3
    assert json.loads((tmp_path / "losses.json").read_text()) == pytest.approx(expected, rel=1e-5)


def test_a_job_that_loses_a_process_ends_and_goes_on(tmp_path):
    recipe = write_recipe(tmp_path, train={"save_steps": 10})
    options = {"DYNACONV_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    arguments = ["-m", "dynaconv", "train", recipe, "--output"]
    run_on_two_processes(*arguments, tmp_path / "whole", environment=options)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    run = tmp_path / "killed"
    with open(tmp_path / "log", "w+b") as log:
        job = subprocess.Popen([*command, run], env={**os.environ, **options}, stdout=log, stderr=log)
        while not checkpoints(run) and job.poll() is None:
            time.sleep(0.05)
        psutil.Process(job.pid).children()[-1].send_signal(signal.SIGKILL)
        assert job.wait(timeout=120) != 0
    said = (tmp_path / "log").read_text(errors="replace")
    assert "Signal 9 (SIGKILL)" in said
    assert not (run / "model.safetensors").exists()
    run_on_two_processes(*arguments, run, "--resume", environment=options)
    whole, killed = (load_file(folder / "model.safetensors") for folder in (tmp_path / "whole", run))
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
