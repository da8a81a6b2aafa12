"""The implementations that this process tests, each with sizes that it computes in a test's time.

With TRITON_INTERPRET=1, which has to be set before the kernels are imported, it is Triton's interpreter, otherwise the
CPU kernels, and on a machine with a GPU the Triton kernels too.
"""

import importlib.util
import os
from typing import NamedTuple

import torch

import dynaconv

from .problems import DTYPES, MIXED, Problem, problems

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


class Backend(NamedTuple):
    """An implementation under test; a value of every list is drawn for a random problem."""

    name: str
    device: str
    dtypes: list
    lengths: list[int]
    channels: list[int]
    widths: list[int]
    ranks: list[int]
    limit: int
    examples: int

    def __str__(self) -> str:
        return self.name

    def used(self):
        """Operators take this implementation inside a `with` block."""
        return dynaconv.backend(self.name)

    def problem(self, kind, *sizes, **options):
        return Problem(kind, *sizes, device=self.device, **options)

    def problems(self, kind):
        """A strategy of Hypothesis."""
        sizes = (self.lengths, self.channels, self.widths, self.ranks)
        return problems(kind, *sizes, self.dtypes, self.limit, self.device)


SAME = [(dtype, dtype) for dtype in DTYPES]
SINGLE = [pair for pair in SAME + MIXED if torch.float64 not in pair]
CPU = Backend(
    "cpu", "cpu", SAME + MIXED, [0, 1, 2, 3, 7, 30, 31, 50, 67, 127, 129], [1, 2, 3, 7, 16, 24, 65, 300],
    [1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 31], [0, 1, 3, 4, 7, 8, 15, 16, 17, 32], 1040, 100,
)  # fmt: skip
INTERPRETER = Backend(  # a program takes a millisecond
    "triton", "cpu", SINGLE, [0, 1, 2, 3, 7, 17, 31, 33, 50], [1, 2, 3, 7, 16, 24], [1, 2, 3, 4, 5, 9],
    [1, 3, 8, 15, 16, 17], 100, 30,
)  # fmt: skip
TRITON = Backend(
    "triton", "cuda", SINGLE, [0, 1, 2, 3, 7, 31, 50, 127, 129, 2047, 4097], [1, 3, 16, 24, 48, 64, 96, 128, 256, 1000],
    [1, 2, 3, 4, 5, 6, 7, 8, 31], [1, 3, 4, 7, 8, 15, 16, 17, 32, 64, 128], 4000, 30,
)  # fmt: skip
_ON_GPU = torch.cuda.is_available() and importlib.util.find_spec("triton") is not None
KERNELS = [INTERPRETER] if INTERPRETED else [CPU, TRITON] if _ON_GPU else [CPU]
BACKENDS = [CPU._replace(name="reference"), *KERNELS]
