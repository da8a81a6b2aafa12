"""The operators inside PyTorch: checks, compilation, transforms, threads and processes."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

import dynaconv
from dynaconv.kernels import library

from ..conftest import run_on_two_processes
from .problems import OPERATORS, Problem

X = torch.randn(2, 9, 12)
FILTERS = {
    "static": (torch.randn(3, 4),),
    "dynamic": (torch.randn(2, 9, 3, 4),),
    "lowrank": (torch.randn(2, 9, 5), torch.randn(5, 12, 4)),
}
GRAD = torch.randn(2, 9, 12)
OPTIONS = (3, True, True, 0.5, "cpu")
STATIC, BIAS, STATE, ENDS = torch.randn(3, 4), torch.randn(12), torch.randn(2, 3, 12), torch.tensor([0, 4, 9])


def arguments(kind, extras):
    """Those of the registered operator: plain, with every tensor, or packed."""
    static = () if kind == "static" else (STATIC,)
    if extras == "plain":
        return X, *FILTERS[kind], *(None for _ in static), None, None, None, *OPTIONS
    if extras == "all":
        return X, *FILTERS[kind], *static, BIAS, STATE, None, *OPTIONS
    tokenwise = FILTERS[kind] if kind == "static" else (FILTERS[kind][0][:1], *FILTERS[kind][1:])
    return X[:1], *tokenwise, *static, BIAS, STATE, ENDS, *OPTIONS


@pytest.mark.parametrize("extras", ["plain", "all", "packed"])
@pytest.mark.parametrize("needed", [None, "x and past", "all", "filters and bias"])
@pytest.mark.parametrize("kind", OPERATORS)
def test_opcheck(kind, needed, extras):
    """The operator, and its gradients as far as they are needed."""
    inputs = arguments(kind, extras)
    if needed:
        names = [argument.name for argument in library.OPERATORS[kind].arguments]
        flags = [needed == "all" or (name in ("x", "past")) == (needed == "x and past") for name in names]
        inputs = (GRAD[: len(inputs[0])], *inputs, flags)
        torch.library.opcheck(getattr(torch.ops.dynaconv, f"{kind}_conv_backward").default, inputs)
    else:
        leaves = [
            a.clone().requires_grad_() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in inputs
        ]
        torch.library.opcheck(getattr(torch.ops.dynaconv, f"{kind}_conv").default, tuple(leaves))


class Block(torch.nn.Module):
    """A Transformer block with a short convolution of each kind on queries, keys and values."""

    def __init__(self, dim=12, heads=3, rank=2, width=4):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = torch.nn.Linear(dim, 3 * dim), torch.nn.Linear(dim, dim)
        self.filters, self.codes = torch.nn.Linear(dim, heads * width), torch.nn.Linear(dim, rank)
        self.static = torch.nn.Parameter(torch.randn(dim, width))
        self.basis = torch.nn.Parameter(torch.randn(rank, dim, width))

    def forward(self, x):
        h = torch.nn.functional.rms_norm(x, x.shape[-1:])
        q, k, v = self.qkv(h).chunk(3, -1)
        q = dynaconv.static_conv(q, self.static, activation="silu")
        filters = self.filters(h).unflatten(-1, (self.heads, -1))
        k, last = dynaconv.dynamic_conv(k, filters, normalize="softmax", static=self.static, return_final_state=True)
        v = dynaconv.lowrank_conv(v, self.codes(h), self.basis, static=self.static, residual=True)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + self.out(y.transpose(1, 2).flatten(2)), last


@pytest.mark.slow
def test_a_block_compiles_without_graph_breaks():
    """One graph for every length, forwards and backwards."""
    torch._dynamo.reset()
    block = Block()
    compiled = torch.compile(block, fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for T in (9, 14, 21):
            x = torch.randn(2, T, 12, requires_grad=True)
            outputs = [run(x) for run in (block, compiled)]
            grads = [torch.randn_like(y) for y in outputs[0]]
            leaves = [x, *block.parameters()]
            expected, actual = (torch.autograd.grad(y, leaves, grads) for y in outputs)
            torch.testing.assert_close(outputs[1], outputs[0])
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("onnx", [True, False])
def test_an_export_to_onnx_has_operators_that_onnx_has(onnx, monkeypatch):
    block, x = Block().eval(), torch.randn(2, 9, 12)
    expected = block(x)
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: onnx)  # as inside torch.onnx.export
    program = torch.export.export(block, (x,))
    assert any("dynaconv" in str(node.target) for node in program.graph.nodes) != onnx
    torch.testing.assert_close(program.module()(x), expected)


def test_export_with_a_dynamic_length(tmp_path):
    block, length = Block().eval(), torch.export.Dim("T", min=3, max=4096)
    program = torch.export.export(block, (torch.randn(2, 9, 12),), dynamic_shapes=({1: length},))
    torch.export.save(program, tmp_path / "block.pt2")
    loaded, x = torch.export.load(tmp_path / "block.pt2").module(), torch.randn(2, 30, 12)
    torch.testing.assert_close(loaded(x), block(x))


def test_activation_checkpointing():
    block, x = Block(), X.clone().requires_grad_()
    plain = torch.autograd.grad(block(x)[0].square().sum(), [x, *block.parameters()])
    y, _ = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False)
    again = torch.autograd.grad(y.square().sum(), [x, *block.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(plain, again))


@pytest.mark.parametrize("kind", OPERATORS)
def test_flops_are_counted(kind):
    inputs, _, _ = Problem(kind, 2, 50, 3, 8, 4, 5).tensors()
    inputs = {name: tensor.requires_grad_() for name, tensor in inputs.items()}
    products = 2 * 50 * 24 * 4
    with FlopCounterMode(display=False) as counter:
        y = OPERATORS[kind](**inputs)
    forward = counter.get_total_flops()
    assert forward == (2 * 5 + 2 if kind == "lowrank" else 2) * products
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    assert counter.get_total_flops() == (forward + (4 * 5 + 2) * products if kind == "lowrank" else 2 * forward)


@pytest.mark.slow
def test_dtensors_and_fsdp():
    """Two processes with a part of the batch or of the channels each, against one."""
    result = run_on_two_processes(Path(__file__).with_name("two_processes.py"))
    assert result.stdout.count("equal") == 2


@pytest.mark.parametrize("kind", OPERATORS)
def test_function_transforms_take_the_reference(kind):
    x, f = X.double(), [t.double() for t in FILTERS[kind]]

    def loss(x, f):
        return OPERATORS[kind](x, *f).square().sum()

    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(torch.func.grad(loss)(x, f), torch.autograd.grad(loss(leaf, f), leaf)[0])
    tangent = torch.randn_like(x)
    exact = (OPERATORS[kind](x + 1e-6 * tangent, *f) - OPERATORS[kind](x, *f)) / 1e-6
    torch.testing.assert_close(
        torch.func.jvp(lambda x: OPERATORS[kind](x, *f), (x,), (tangent,))[1], exact, rtol=1e-4, atol=1e-6
    )
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, tangent)
        forward = torch.autograd.forward_ad.unpack_dual(OPERATORS[kind](dual, *f)).tangent
    torch.testing.assert_close(forward, exact, rtol=1e-4, atol=1e-6)
    batched = torch.func.vmap(torch.func.grad(loss), in_dims=(0, None))(torch.stack([x, 2 * x]), f)
    torch.testing.assert_close(batched[1], torch.func.grad(loss)(2 * x, f))


def grad_inside(function, x, tangent):
    return torch.func.grad(lambda x: function(x).square().sum())(x)


def jvp_inside(function, x, tangent):
    return torch.func.jvp(function, (x,), (tangent,))[1]


def dual_inside(function, x, tangent):
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, tangent)
        return torch.autograd.forward_ad.unpack_dual(function(dual)).tangent


@pytest.mark.parametrize("transform", [grad_inside, jvp_inside, dual_inside])
@pytest.mark.parametrize("kind", OPERATORS)
def test_compiled_transforms_take_the_reference(kind, transform):
    """A registered operator inside would drop the tangent without a word."""

    def function(x, tangent):
        return transform(lambda x: OPERATORS[kind](x, *FILTERS[kind]), x, tangent)

    torch._dynamo.reset()
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(X, GRAD), function(X, GRAD))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast(dtype):
    module = dynaconv.nn.DynamicConv(12, 4, 3)

    def results(backend):
        module.zero_grad()
        with dynaconv.backend(backend), torch.autocast("cpu", torch.bfloat16):
            y = module(X.to(dtype))
            y.backward(GRAD.to(dtype))
        return y, module.filter_proj.weight.grad

    (y, gradient), expected = results("cpu"), results("reference")
    assert y.dtype == dtype
    assert gradient.dtype == torch.float32
    # The linear layer works in bf16, with an eps of 2 ** -7.
    torch.testing.assert_close((y, gradient), expected, rtol=2**-6, atol=2**-6)
    assert gradient.abs().max() > 0.1


@pytest.mark.parametrize("kind", OPERATORS)
def test_autocast_with_master_weights(kind):
    """Activations in bf16 and parameters in fp32: gradients have the dtypes of what they are gradients of."""
    inputs, _, _ = Problem(kind, extras=("static", "bias", "residual")).tensors()
    parameters = {"basis", "static", "bias"} | ({"filters"} if kind == "static" else set())

    def results(backend):
        leaves = {
            name: (tensor if name in parameters else tensor.bfloat16()).requires_grad_()
            for name, tensor in inputs.items()
        }
        with dynaconv.backend(backend), torch.autocast("cpu", torch.bfloat16):
            y = OPERATORS[kind](**leaves)
        y.backward(torch.ones_like(y))
        gradients = {name: leaf.grad for name, leaf in leaves.items()}
        for leaf in leaves.values():
            leaf.grad = None
        return y, gradients

    (y, gradients), expected = results("cpu"), results("reference")
    assert y.dtype == torch.bfloat16
    assert all(g.dtype == (torch.float32 if name in parameters else torch.bfloat16) for name, g in gradients.items())
    torch.testing.assert_close((y, gradients), expected, rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize("kind", OPERATORS)
def test_many_threads_at_once(kind):
    def run(seed):  # a problem draws its inputs when it runs
        return Problem(kind, 4, 300, 4, 16, 7, seed=seed).run("cpu")

    expected = [run(seed) for seed in range(3)]
    with ThreadPoolExecutor(32) as pool:
        results = list(pool.map(lambda n: run(n % 3), range(96)))
    assert all(
        torch.equal(value, expected[n % 3][name]) for n, result in enumerate(results) for name, value in result.items()
    )


def test_workers_of_a_data_loader():
    """Forked, behind calls of their parent on all threads; each has one thread of its own."""
    x, filters = torch.randn(8, 300, 64), torch.randn(64, 4)
    expected = dynaconv.static_conv(x, filters)
    rows = DataLoader(list(x), num_workers=2, batch_size=2, multiprocessing_context="fork",
                      collate_fn=lambda rows: dynaconv.static_conv(torch.stack(rows), filters))  # fmt: skip
    assert torch.equal(torch.cat(list(rows)), expected)


def test_an_implementation_is_forced_inside_a_compiled_function():
    """Again and again: what forces it must not invalidate what was compiled."""

    def function(x, filters):
        with dynaconv.backend("reference"):
            return dynaconv.static_conv(x, filters)

    x, filters = torch.randn(2, 9, 12), torch.randn(12, 4)
    compiled = torch.compile(function, backend="eager")
    for _ in range(3):
        torch.testing.assert_close(compiled(x, filters), function(x, filters))


def test_forked_child():
    """As with torch's own operators, OpenMP's threads do not survive the fork."""
    x, filters = torch.randn(1, 300, 64), torch.randn(1, 300, 4, 7)
    expected = dynaconv.dynamic_conv(x, filters)
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        os._exit(0 if torch.allclose(dynaconv.dynamic_conv(x, filters), expected, atol=1e-5) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_flops_of_the_first_call_in_a_process():
    code = (
        "import torch, dynaconv\n"
        "from torch.utils.flop_counter import FlopCounterMode\n"
        "with FlopCounterMode(display=False) as counter:\n"
        "    dynaconv.static_conv(torch.randn(2, 5, 3), torch.randn(3, 4))\n"
        "print(counter.get_total_flops())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == str(2 * 2 * 5 * 3 * 4)
