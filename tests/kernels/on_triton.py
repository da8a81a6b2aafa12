"""What is particular to the Triton kernels, on a GPU or else in Triton's interpreter.

pytest does not collect this file by itself: `test_triton.py` runs it, with the tests of all implementations, in a process
of its own with TRITON_INTERPRET=1. On a machine with a GPU: pytest tests/kernels tests/kernels/on_triton.py
"""

import numpy as np
import pytest
import torch

import dynaconv

from .backends import INTERPRETED, KERNELS
from .problems import OPERATORS, Problem


def problem(kind, *sizes, **options):
    return KERNELS[-1].problem(kind, *sizes, **options)


@pytest.mark.parametrize(
    "sizes", [(1, 5, 3, 130, 3), (1, 5, 20, 7, 4), (1, 40, 1, 24, 31), (1, 700, 1, 3, 2), (3, 9, 130, 1, 4)], ids=str
)
@pytest.mark.parametrize("kind", OPERATORS)
def test_several_blocks(kind, sizes):
    """More channels, heads, channels of a head and tokens than a program takes."""
    problem(kind, *sizes, rank=40, extras=("static", "state")).check("triton")


def packed_of_length(kind, T):
    return problem(kind, length=T, extras=("packed",)).tensors()[0]


@pytest.mark.parametrize("kind", OPERATORS)
def test_packed_lengths_change_under_the_same_tensor(kind):
    """The table of chunks is kept for a tensor, but not beyond a change of it."""
    packed = problem(kind, extras=("packed",))
    inputs, keywords, _ = packed.tensors()
    ends = keywords["cu_seqlens"]
    for changed in (ends.clone(), torch.where(ends < 40, ends // 2, ends)):
        ends.copy_(changed)
        with dynaconv.backend("triton"):
            y = OPERATORS[kind](**inputs, **keywords)
        with dynaconv.backend("reference"):
            torch.testing.assert_close(y, OPERATORS[kind](**inputs, **keywords), atol=1e-4, rtol=1e-4)
    for T in (39, 41):
        longer = packed_of_length(kind, T)
        with (
            dynaconv.backend("triton"),
            pytest.raises(ValueError, match=f"and end at T = {T}"),
        ):
            OPERATORS[kind](**longer, **keywords)
    ends[-1] = 39
    with (
        dynaconv.backend("triton"),
        pytest.raises(ValueError, match="cu_seqlens must start at 0, not decrease, and end at T = 40"),
    ):
        OPERATORS[kind](**inputs, **keywords)


@pytest.mark.skipif(not INTERPRETED, reason="virtual memory of the CPU")
@pytest.mark.parametrize("last", [False, True], ids=["rows", "channels and taps"])
@pytest.mark.parametrize("kind", OPERATORS)
def test_addresses_beyond_two_to_the_31(kind, last, tmp_path):
    """Elements of x and of the filters lie more than 2^31 elements apart, in a file that is nearly all hole."""
    inputs, keywords, _ = Problem(kind, 2, 5, 2, 3, 3, 3).tensors()
    far = (2**31 + 64) // (2 if last else 1)  # there are at least two steps between channels, ranks and taps
    expected = OPERATORS[kind](**inputs, **keywords)
    for name in ("x", "filters", "codes"):
        if name in inputs and inputs[name].shape[0] == 2 and inputs[name].dim() > 2:
            axis = inputs[name].dim() - 1 if last else 0
            elements = (inputs[name].shape[axis] - 1) * far + 4096
            flat = torch.from_numpy(np.memmap(tmp_path / name, np.float32, "w+", shape=elements))
            strides = [far if n == axis else s for n, s in enumerate(inputs[name].stride())]
            inputs[name] = flat.as_strided(inputs[name].shape, strides).copy_(inputs[name])
    for backend in ("triton", "cpu"):
        with dynaconv.backend(backend):
            torch.testing.assert_close(OPERATORS[kind](**inputs, **keywords), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", OPERATORS)
def test_nan_stays_where_it_is(kind):
    """An input that is not a number reaches the gradients of the taps that met it, and no others."""
    inputs, keywords, _ = problem(kind, 1, 1, 1, 2, 3, 2).tensors()
    inputs["x"][:] = float("nan")
    gradients = {}
    for backend in ("reference", "triton"):
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
        with dynaconv.backend(backend):
            y = OPERATORS[kind](**leaves, **keywords)
        gradients[backend] = torch.autograd.grad(y, list(leaves.values()), torch.ones_like(y))
    for actual, expected in zip(gradients["triton"], gradients["reference"]):
        torch.testing.assert_close(actual.isnan(), expected.isnan())
    assert not gradients["reference"][-1].isnan().all()


@pytest.mark.parametrize("sizes", [(2, 70, 1, 40, 31, 16), (2, 70, 1, 300, 4, 60)], ids=str)
def test_code_gradients_in_a_pass_of_their_own(sizes):
    """Where their sums over the blocks of channels would be large."""
    problem("lowrank", *sizes, extras=("state", "static")).check("triton")


def test_too_many_programs():
    from dynaconv.kernels.triton import runtime

    with pytest.raises(ValueError, match="x is too large"):
        runtime.launch(None, 2**31, torch.empty(1, 2, 3))
