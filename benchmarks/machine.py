"""What a result was measured on."""

import os
import platform
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch

import dynaconv


def describe() -> dict[str, Any]:
    """Hardware and versions, for the JSON beside every result."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numba": numba.__version__,
        "numpy": np.__version__,
        "dynaconv": dynaconv.__version__,
    }
