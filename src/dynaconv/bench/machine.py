"""What a result was measured on."""

import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

import dynaconv

from ..versions import installed

_PACKAGES = ("torch", "triton", "numpy", "causal-conv1d", "flash-linear-attention")


def describe() -> dict[str, Any]:
    """Hardware and versions, for the JSON beside every result."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        **(_gpu() if torch.cuda.is_available() else {}),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "dynaconv": dynaconv.__version__,
        **{name: version for name in _PACKAGES if (version := installed(name))},
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _gpu() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "gpu": properties.name,
        "gpu memory (GB)": round(properties.total_memory / 1e9, 1),
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "rocm": torch.version.hip,
    }


def _driver() -> str | None:
    """Version of NVIDIA's driver, which PyTorch does not tell."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()  # noqa: S603
    return lines[0].strip() if lines else None
