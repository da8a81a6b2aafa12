"""The package as users get it: a wheel for every Python, with kernels, and one without where there was no compiler."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from dynaconv.kernels.cpu.build import LIBRARIES

ROOT = Path(__file__).parents[1]
SCRIPT = """
import logging, sys
logging.basicConfig(stream=sys.stdout, format="%(name)s: %(message)s")
import torch, dynaconv
print(dynaconv.__file__)
x, filters = torch.randn(2, 9, 12), torch.randn(12, 4)
for _ in range(2):
    y = dynaconv.static_conv(x, filters)
with dynaconv.backend("reference"):
    torch.testing.assert_close(y, dynaconv.static_conv(x, filters))
from dynaconv.kernels import cpu
print("reference" if cpu.refuses((x,)) else "kernels")
"""


def pip(*arguments: object, **environment: str) -> str:
    command = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        *map(str, arguments),
        "--no-deps",
        "--no-index",
    ]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def build(folder: Path, kernels: bool, **environment: str) -> Path:
    """The wheel of the sources; with kernels those of this environment, which are of the same sources."""
    sources = folder / "sources"
    ignored = shutil.ignore_patterns("__pycache__", *([] if kernels else ["libraries"]))
    shutil.copytree(ROOT / "src", sources / "src", ignore=ignored)
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    pip("wheel", "--no-build-isolation", "--wheel-dir", folder, sources, **environment)
    (wheel,) = folder.glob("*.whl")
    return wheel


def use(wheel: Path, folder: Path) -> list[str]:
    """What a process says that has the wheel, torch, and no compiler."""
    venv.create(folder / "environment")
    python = folder / "environment" / "bin" / "python"
    pip("--python", python, "install", wheel)
    (site,) = (folder / "environment").glob("lib/python*/site-packages")
    site.joinpath("torch.pth").write_text(sysconfig.get_path("purelib"), "utf-8")
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "CXX")}
    result = subprocess.run(
        [python, "-c", SCRIPT], capture_output=True, text=True, env=environment | {"PATH": ""}, cwd=folder, check=False
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert str(site) in lines.pop(0)
    return lines


@pytest.mark.slow
@pytest.mark.skipif(not any(LIBRARIES.glob("*.so")), reason="needs the CPU kernels")
def test_a_wheel_for_every_python(tmp_path):
    wheel = build(tmp_path, kernels=True)
    assert "-py3-none-" in wheel.name
    assert not wheel.name.endswith("-any.whl")
    with zipfile.ZipFile(wheel) as files:
        names = {Path(name).name for name in files.namelist() if name.endswith(".so")}
    assert names == {path.name for path in LIBRARIES.glob("*.so")}
    assert use(wheel, tmp_path) == ["kernels"]


@pytest.mark.slow
def test_without_a_compiler_it_is_installed_and_slower(tmp_path):
    wheel = build(tmp_path, kernels=False, CXX="no-such-compiler")
    assert wheel.name.endswith("-py3-none-any.whl")
    line, implementation = use(wheel, tmp_path)
    assert implementation == "reference"
    assert line.startswith('dynaconv: "cpu" cannot serve a call, plain PyTorch takes its place, which is slower: ')
    assert line.endswith("they are not compiled; with a C++ compiler, python -m dynaconv.kernels.cpu does it")
