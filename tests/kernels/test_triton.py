"""The Triton kernels without a GPU: in the interpreter, and compiled ahead of time for every target."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dynaconv
from dynaconv.kernels.options import Options

pytest.importorskip("triton", reason="Triton is there for Linux alone")

from triton.backends.compiler import GPUTarget
from triton.runtime import driver

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32), "sm_90": GPUTarget("cuda", 90, 32), "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}  # fmt: skip


KERNELS = Path(__file__).parent
INTERPRETED = (
    "on_triton",
    "test_operators",
    "test_streaming",
    "test_golden",
    "test_second_derivatives",
    "../test_functional",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", INTERPRETED)
def test_in_the_interpreter(name):
    command = [sys.executable, "-m", "pytest", "-q", "-k", "triton", "-p", "no:cacheprovider", KERNELS / f"{name}.py"]
    command += ["--durations", "15"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    print(result.stdout[-5000:])
    assert result.returncode == 0, result.stdout[-5000:]
    assert " passed" in result.stdout


class Device:
    """What Triton asks its driver before it compiles."""

    def __init__(self, name: str):
        self.name = name

    def get_current_target(self) -> GPUTarget:
        return TARGETS[self.name]

    def get_current_device(self) -> str:
        return self.name

    def get_current_stream(self, device: str) -> int:
        return 0


@pytest.fixture
def compiled(monkeypatch):
    """Launches compile for the target and do not run; returns what was compiled."""
    from dynaconv.kernels.triton import dynamic, lowrank, static

    kernels = []

    def compile_only(kernel, programs, x, *arguments, **constants):
        kernels.append(kernel.warmup(*arguments, grid=(programs,), **constants))

    for module in (static, dynamic, lowrank):
        monkeypatch.setattr(module, "launch", compile_only)
    before = driver._active if hasattr(driver, "_active") else None
    yield kernels
    driver._active = before


CASES = {
    "static W 4": ("static", {"W": 4}), "static W 31": ("static", {"W": 31}), "static W 3 D 24": ("static", {"W": 3, "D": 24}),
    "dynamic W 4 H 4": ("dynamic", {"W": 4, "H": 4}), "dynamic W 31 H 4": ("dynamic", {"W": 31, "H": 4}),
    "dynamic W 3 H 256": ("dynamic", {"W": 3, "H": 256}), "dynamic W 7 H 1": ("dynamic", {"W": 7, "H": 1}),
    "lowrank W 4 R 16": ("lowrank", {"W": 4, "R": 16}), "lowrank W 3 R 7": ("lowrank", {"W": 3, "R": 7}),
    "lowrank W 31 R 16": ("lowrank", {"W": 31, "R": 16}), "lowrank W 4 R 128": ("lowrank", {"W": 4, "R": 128}),
    "lowrank W 4 R 64": ("lowrank", {"W": 4, "R": 64}), "lowrank W 2 R 128": ("lowrank", {"W": 2, "R": 128}),
}  # fmt: skip
PLAIN = Options(left=1, silu=False, residual=False, scale=1.0)
FULL = Options(left=-1, silu=True, residual=True, scale=0.5)


def matrix():
    """Every target with every dtype, and every other size on one target."""
    first = {"static": "static W 4", "dynamic": "dynamic W 4 H 4", "lowrank": "lowrank W 4 R 16"}
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    yield from ((target, case, dtype) for target in TARGETS for case in first.values() for dtype in dtypes)
    yield from (("sm_90", case, torch.bfloat16) for case in CASES if case not in first.values())
    yield "gfx942", "lowrank W 4 R 128", torch.float32


@pytest.mark.slow
@pytest.mark.parametrize(("target", "case", "dtype"), list(matrix()))
def test_ahead_of_time(target, case, dtype, compiled):
    kind, sizes = CASES[case]
    family = __import__(f"dynaconv.kernels.triton.{kind}", fromlist=["forward"])
    driver.set_active(Device(target))
    W, D, H, R = sizes["W"], sizes.get("D", 256), sizes.get("H", 4), sizes.get("R", 16)
    x, grad = torch.empty(1, 300, D, dtype=dtype), torch.empty(1, 300, D, dtype=dtype)
    static = torch.empty(D, W)
    filters = {
        "static": (static,), "dynamic": (x.new_empty(1, 300, H, W), static),
        "lowrank": (x.new_empty(1, 300, R), x.new_empty(R, D, W), static),
    }[kind]  # fmt: skip
    bias, state, ends = x.new_empty(D), x.new_empty(3, W - 1, D), torch.tensor([0, 1, 5, 300])
    plain = filters if kind == "static" else (*filters[:-1], None)
    family.forward(x, *plain, None, None, None, PLAIN, torch.float32)
    family.backward(grad, grad, x, *plain, None, None, PLAIN, torch.float32, True, True)
    # Every keyword, for one dtype of each target.
    if W == 4 and R == 16 and dtype == torch.bfloat16:
        family.forward(x, *filters, bias, state, ends, FULL._replace(left=W - 1), torch.float32)
        family.forward(x, *filters, bias, state, ends, FULL._replace(left=W - 1), torch.float32, grad=grad)
        family.backward(grad, grad, x, *filters, state, ends, FULL._replace(left=W - 1), torch.float32, True, True)
    binary = "hsaco" if target.startswith("gfx") else "cubin"
    assert len(compiled) >= 2
    assert all(len(kernel.asm[binary]) > 1000 for kernel in compiled)
    # What a program may share: 99 KiB on the smallest of the NVIDIA targets' siblings, 64 KiB on the AMD target.
    assert all(kernel.metadata.shared <= 64 * 1024 for kernel in compiled)


def test_needs_a_gpu_or_the_interpreter():
    x = torch.randn(1, 3, 4)
    refused = r'backend\("triton"\) cannot serve this call: it needs the package triton and tensors on a GPU'
    with dynaconv.backend("triton"), pytest.raises(ValueError, match=refused):
        dynaconv.static_conv(x, torch.randn(4, 2))
