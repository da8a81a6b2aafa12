"""Where the CPU kernels cannot be kept, loaded or run: the same numbers without them, and one line that says so."""

import os
import subprocess
import sys

import pytest
import torch

import dynaconv
from dynaconv.kernels import cpu
from dynaconv.kernels.cpu.runtime import levels

from .test_integration import FILTERS, X

pytestmark = pytest.mark.skipif(cpu.refuses((torch.ones(1),)) is not None, reason="needs the CPU kernels")

SCRIPT = """
import logging, sys
logging.basicConfig(stream=sys.stdout, format="%(name)s: %(message)s")
{before}
import torch, dynaconv
x, f = torch.arange(36.0).view(1, 9, 4).requires_grad_(), torch.tensor([[1.0, -2.0, 3.0]]).requires_grad_()
for _ in range(2):
    y = dynaconv.static_conv(x, f, bias=torch.ones(4), output_scale=0.5)
    gradients = torch.autograd.grad(y.square().sum(), [x, f])
with dynaconv.backend("reference"):
    expected = dynaconv.static_conv(x, f, bias=torch.ones(4), output_scale=0.5)
torch.testing.assert_close(y, expected)
torch.testing.assert_close(gradients, torch.autograd.grad(expected.square().sum(), [x, f]))
from dynaconv.kernels import cpu
print("reference" if cpu.refuses((x,)) else "kernels")
"""


def run(before="", **environment):
    """What a process that computes a convolution twice says."""
    command = [sys.executable, "-c", SCRIPT.format(before=before)]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    *lines, implementation = result.stdout.strip().splitlines()
    return lines, implementation


MISSING = (
    'dynaconv: "cpu" cannot serve a call, plain PyTorch takes its place, which is slower: the kernels do not load: '
)


@pytest.mark.parametrize(
    ("before", "why"),
    [
        (
            "from dynaconv.kernels.cpu import runtime; runtime.LIBRARIES = runtime.LIBRARIES / 'absent'",
            "they are not compiled; with",
        ),
        (
            "from dynaconv.kernels.cpu import runtime; runtime.digest = lambda: 'of other sources'",
            "they are not compiled; with",
        ),
        ("import os; os.environ['DYNACONV_CPU'] = 'v9'", "there are none for v9, only for "),
    ],
)
def test_no_kernels_for_this_machine(before, why):
    lines, implementation = run(before)
    assert len(lines) == 1
    assert lines[0].startswith(MISSING + why)
    assert implementation == "reference"


def test_every_level_that_this_processor_has():
    assert levels()
    for level in levels():
        assert run(DYNACONV_CPU=level) == ([], "kernels")


def in_a_child(function):
    """Whether the function is true in a forked child; OpenMP's threads do not survive the fork."""
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)
            os._exit(0 if function() else 1)
        finally:
            os._exit(2)
    return os.waitpid(child, 0)[1] == 0


def close(actual, expected):
    return all(torch.allclose(a, e, rtol=1e-4, atol=1e-4) for a, e in zip(actual, expected, strict=True))


@pytest.mark.parametrize("kind", FILTERS)
def test_a_graph_of_the_parent_in_a_forked_child(kind):
    leaves = [tensor.clone().requires_grad_() for tensor in (X, *FILTERS[kind])]
    state, bias = torch.randn(2, 3, 12, requires_grad=True), torch.randn(12, requires_grad=True)
    leaves += [state, bias]
    operator = getattr(dynaconv, f"{kind}_conv")
    y = operator(*leaves[:-2], initial_state=state, bias=bias, activation="silu", residual=True)
    assert "Convolution" in str(y.grad_fn)
    expected = torch.autograd.grad(y.square().sum(), leaves, retain_graph=True)
    assert in_a_child(lambda: close(torch.autograd.grad(y.square().sum(), leaves), expected))


def test_a_function_compiled_by_the_parent_in_a_forked_child():
    torch._dynamo.reset()
    x, filters = X.clone().requires_grad_(), FILTERS["dynamic"][0].clone().requires_grad_()
    compiled = torch.compile(lambda x, f: dynaconv.dynamic_conv(x, f, activation="silu"), backend="aot_eager")

    def gradients():
        return torch.autograd.grad(compiled(x, filters).square().sum(), [x, filters])

    expected = gradients()
    assert in_a_child(lambda: close(gradients(), expected))
