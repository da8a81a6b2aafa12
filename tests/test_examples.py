"""Every example runs, and does what it says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import toy_pairs, write_tsv

EXAMPLES = Path(__file__).parents[1] / "examples"
README = EXAMPLES.parent / "README.md"
pytestmark = pytest.mark.slow


def run(name, *arguments, folder):
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, cwd=folder)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


def test_graft(tmp_path):
    assert "# dynaconv" in run("graft.py", README, "--steps", 5, "--output", tmp_path / "out", folder=tmp_path)


def test_block(tmp_path):
    bits = [
        float(found) for found in re.findall(r"([\d.]+) bits", run("block.py", README, "--steps", 100, folder=tmp_path))
    ]
    assert bits[1] < bits[0] < 8


def test_streaming(tmp_path):
    differences = [float(line.rsplit(" ", 1)[1]) for line in run("streaming.py", folder=tmp_path).splitlines()]
    assert max(differences) < 1e-4


def test_translate(tmp_path, monkeypatch):
    monkeypatch.setenv("DYNACONV_CACHE", str(tmp_path / "cache"))
    pairs = write_tsv(tmp_path / "pairs.tsv", toy_pairs(300))
    options = ("--steps", 6, "--held-out", 20, "--output", tmp_path / "run")
    lines = run("translate.py", pairs, "zwei rote Hunde", "drei Katzen", *options, folder=tmp_path).splitlines()
    assert len([line for line in lines if re.match(r"-?[\d.]+\t", line)]) == 2


def test_every_example_is_run():
    assert {path.name for path in EXAMPLES.glob("*.py")} == {"graft.py", "block.py", "streaming.py", "translate.py"}
