"""The operators inside PyTorch: checks, compilation, transforms, threads and processes."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import dynaconv
from dynaconv.kernels import library

from .oracle import outputs_and_gradients

X = torch.randn(2, 9, 12)
FILTERS = {"static": torch.randn(3, 4), "dynamic": torch.randn(2, 9, 3, 4)}
OPERATORS = {"static": dynaconv.static_conv, "dynamic": dynaconv.dynamic_conv}
GRAD = torch.randn(2, 9, 12)

ARGUMENTS = {
    "dynamic_conv": (X, FILTERS["dynamic"], 3),
    "dynamic_input_grad": (GRAD, FILTERS["dynamic"], 3, 9),
    "dynamic_filter_grad": (GRAD, X, 3, 3, 4),
    "static_conv": (X, FILTERS["static"], 3, 9),
    "static_filter_grad": (GRAD, X, 3, 3, 4),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_opcheck(name):
    inputs = [
        a.clone().requires_grad_(name.endswith("conv")) if isinstance(a, torch.Tensor) else a for a in ARGUMENTS[name]
    ]
    torch.library.opcheck(getattr(library, name), tuple(inputs))


@pytest.mark.slow
@pytest.mark.parametrize("kind", OPERATORS)
def test_compile_without_graph_breaks(kind):
    def block(x, f):
        return torch.nn.functional.gelu(OPERATORS[kind](x * 2, f, normalize="softmax")) + x

    compiled = torch.compile(block, fullgraph=True, dynamic=True)
    for T in (9, 14):
        x = torch.randn(2, T, 12, requires_grad=True)
        f = torch.randn((3, 4) if kind == "static" else (2, T, 3, 4), requires_grad=True)
        expected, actual = block(x, f), compiled(x, f)
        torch.testing.assert_close(actual, expected)
        grad = torch.randn_like(expected)
        for a, b in zip(
            torch.autograd.grad(actual, (x, f), grad), torch.autograd.grad(expected, (x, f), grad), strict=True
        ):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", OPERATORS)
def test_function_transforms_take_the_reference(kind):
    x, f = X.double(), FILTERS[kind].double()

    def loss(x, f):
        return OPERATORS[kind](x, f).square().sum()

    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(torch.func.grad(loss)(x, f), torch.autograd.grad(loss(leaf, f), leaf)[0])
    tangent = torch.randn_like(x)
    exact = (OPERATORS[kind](x + 1e-6 * tangent, f) - OPERATORS[kind](x, f)) / 1e-6
    torch.testing.assert_close(
        torch.func.jvp(lambda x: OPERATORS[kind](x, f), (x,), (tangent,))[1], exact, rtol=1e-4, atol=1e-6
    )
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, tangent)
        forward = torch.autograd.forward_ad.unpack_dual(OPERATORS[kind](dual, f)).tangent
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
        return transform(lambda x: OPERATORS[kind](x, FILTERS[kind]), x, tangent)

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(X, GRAD), function(X, GRAD))


@pytest.mark.parametrize("wrt", [0, 1], ids=["of x", "of filters"])
@pytest.mark.parametrize("first", [0, 1], ids=["gradient of x", "gradient of filters"])
@pytest.mark.parametrize("kind", OPERATORS)
def test_second_derivatives_are_right_or_refused(kind, first, wrt):
    """Only the input gradient of the static operator has derivatives: it is a convolution itself."""

    def second(backend):
        leaves = X.clone().requires_grad_(), FILTERS[kind].clone().requires_grad_()
        with dynaconv.backend(backend):
            loss = OPERATORS[kind](*leaves).square().sum()
            gradient = torch.autograd.grad(loss, leaves, create_graph=True)[first]
            return torch.autograd.grad(gradient.square().sum(), leaves[wrt])[0]

    if kind == "static" and first == 0:
        torch.testing.assert_close(second("cpu"), second("reference"), rtol=1e-4, atol=1e-3)
    else:
        with pytest.raises(RuntimeError, match="Trying to backward through dynaconv"):
            second("cpu")


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


def test_several_threads_at_once():
    inputs, grad = [torch.randn(4, 300, 64), torch.randn(4, 300, 4, 7)], torch.randn(4, 300, 64)
    expected = outputs_and_gradients(dynaconv.dynamic_conv, inputs, grad)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: outputs_and_gradients(dynaconv.dynamic_conv, inputs, grad), range(20)))
    assert all(torch.equal(a, b) for result in results for a, b in zip(result, expected, strict=True))


def test_forked_child():
    """OpenMP's threads do not survive a fork; a child computes with the reference."""
    x, filters = torch.randn(1, 300, 64), torch.randn(1, 300, 4, 7)
    expected = dynaconv.dynamic_conv(x, filters)
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        os._exit(0 if torch.allclose(dynaconv.dynamic_conv(x, filters), expected, atol=1e-5) else 1)
    assert os.waitpid(child, 0)[1] == 0
