"""Gradients of gradients: of kernels by the reference, with every keyword, and where they are used."""

import pytest
import torch
from torch.autograd import gradgradcheck

import dynaconv

from .backends import KERNELS
from .problems import EXTRAS, MIXED, OPERATORS, Problem
from .test_integration import FILTERS, X

COMBINATIONS = [(), *((extra,) for extra in EXTRAS), tuple(e for e in EXTRAS if e != "packed"), tuple(EXTRAS)]


@pytest.mark.parametrize("extras", COMBINATIONS, ids=str)
@pytest.mark.parametrize("kind", OPERATORS)
def test_against_finite_differences(kind, extras):
    problem = Problem(kind, 2, 7, 2, 2, 3, 2, extras=extras, dtypes=(torch.float64,) * 2)
    inputs, keywords, _ = problem.tensors()

    def function(*tensors):
        with dynaconv.backend("cpu"):
            return OPERATORS[kind](**dict(zip(inputs, tensors, strict=True)), **keywords)

    assert gradgradcheck(function, [tensor.requires_grad_() for tensor in inputs.values()], fast_mode=True)


@pytest.mark.parametrize("padding", ["same", 0, 4])
@pytest.mark.parametrize("kind", OPERATORS)
def test_every_padding(kind, padding):
    inputs, keywords, _ = Problem(kind, 2, 7, 2, 2, 5, 2, padding, ("silu",), (torch.float64,) * 2).tensors()
    leaves = [tensor.requires_grad_() for tensor in inputs.values()]
    assert gradgradcheck(lambda *tensors: OPERATORS[kind](*tensors, **keywords), leaves, fast_mode=True)


def check_second_derivatives(backend, problem):
    """Those of a backend are those of the reference, and are there."""
    actual, expected = problem.run_twice(backend), problem.run_twice("reference")
    # First derivatives that bf16 or fp16 has rounded differently.
    tolerance = 1e-4 if problem.dtypes == (torch.float32,) * 2 else 2e-2
    for name, value in expected.items():
        size = value.abs().max().item()
        torch.testing.assert_close(actual[name], value, rtol=tolerance, atol=tolerance * max(size, 1), msg=name)
    assert all(value.any() for name, value in expected.items() if name != "bias" or "silu" in problem.extras)


@pytest.mark.parametrize("backend", KERNELS, ids=str)
@pytest.mark.parametrize("extras", COMBINATIONS, ids=str)
@pytest.mark.parametrize("kind", OPERATORS)
def test_single_precision(kind, extras, backend):
    check_second_derivatives(backend.name, backend.problem(kind, extras=extras))


@pytest.mark.parametrize("backend", KERNELS, ids=str)
@pytest.mark.parametrize("dtypes", MIXED[:2], ids=str)
@pytest.mark.parametrize("kind", OPERATORS)
def test_mixed_dtypes(kind, dtypes, backend):
    problem = backend.problem(kind, extras=("static", "silu", "state"), dtypes=dtypes)
    check_second_derivatives(backend.name, problem)


@pytest.mark.parametrize("backend", KERNELS, ids=str)
@pytest.mark.parametrize("kind", OPERATORS)
def test_only_those_that_are_wanted(kind, backend):
    """With regard to one input at a time, through gradients of one input at a time."""
    problem = backend.problem(kind, 2, 9, 2, 2, 3, 2, extras=("static", "bias", "silu", "state"))
    inputs, keywords, _ = problem.tensors()
    keywords |= {"return_final_state": False}
    for of in inputs:
        for by in inputs:
            results = []
            for implementation in (backend.name, "reference"):
                leaves = {name: t.detach().requires_grad_(name in (of, by)) for name, t in inputs.items()}
                with dynaconv.backend(implementation):
                    y = OPERATORS[kind](**leaves, **keywords)
                first = torch.autograd.grad(y.square().sum(), leaves[of], create_graph=True)[0]
                results.append(torch.autograd.grad(first.square().sum(), leaves[by])[0])
            torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4 * results[1].abs().max().item())


@pytest.mark.parametrize("kind", OPERATORS)
def test_third_derivatives(kind):
    inputs, keywords, _ = Problem(
        kind, 2, 5, 2, 2, 3, 2, extras=("silu", "bias"), dtypes=(torch.float64,) * 2
    ).tensors()
    results = []
    for backend in ("cpu", "reference"):
        leaves = [tensor.detach().requires_grad_() for tensor in inputs.values()]
        with dynaconv.backend(backend):
            total = OPERATORS[kind](**dict(zip(inputs, leaves, strict=True)), **keywords).square().sum()
        for _ in range(2):
            total = sum(g.square().sum() for g in torch.autograd.grad(total, leaves, create_graph=True))
        results.append(torch.autograd.grad(total, leaves))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("backend", KERNELS, ids=str)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", OPERATORS)
def test_no_token(kind, packed, backend):
    problem = backend.problem(kind, length=0, extras=("packed", "bias", "state") if packed else ("bias",))
    torch.testing.assert_close(problem.run_twice(backend.name), problem.run_twice("reference"))


@pytest.mark.parametrize("kind", OPERATORS)
def test_hessian(kind):
    x, filters = X[:1, :3, :6].double(), [t.double() for t in FILTERS[kind]]
    if kind != "static":
        filters[0] = filters[0][:1, :3]
    if kind == "lowrank":
        filters[1] = filters[1][:, :6]

    def function(x):
        return OPERATORS[kind](x, *filters, activation="silu").sum()

    actual = torch.autograd.functional.hessian(function, x)
    with dynaconv.backend("reference"):
        torch.testing.assert_close(actual, torch.autograd.functional.hessian(function, x))
    assert actual.any()


def test_a_gradient_penalty_trains():
    """The slope of a critic with regard to its input goes to 1, as in WGAN-GP."""
    torch.manual_seed(0)
    layer = dynaconv.nn.DynamicShortConv(8, rank=2, activation="silu")
    critic = torch.nn.Sequential(layer, torch.nn.Linear(8, 1))
    optimizer, x = torch.optim.Adam(critic.parameters(), 0.02), torch.randn(4, 6, 8, requires_grad=True)
    penalties = []
    for _ in range(60):
        slope = torch.autograd.grad(critic(x).sum(), x, create_graph=True)[0].flatten(1).norm(dim=1)
        penalty = (slope - 1).square().mean()
        optimizer.zero_grad()
        penalty.backward()
        optimizer.step()
        penalties.append(penalty.item())
    assert all(p.grad is not None and p.grad.any() for name, p in critic.named_parameters() if name != "1.bias")
    assert penalties[-1] < 0.01 * penalties[0]


def test_first_derivatives_save_nothing_more():
    """The operator saves its inputs; its backward operator, without `create_graph`, nothing."""
    x, filters = X.clone().requires_grad_(), FILTERS["static"][0].clone().requires_grad_()
    saved = []

    def pack(tensor):
        saved.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = dynaconv.static_conv(x, filters)
        assert saved == [x.shape, filters.shape]
        torch.autograd.grad(y.sum(), x, retain_graph=True)
        assert len(saved) == 2
        gradient = torch.autograd.grad(y.sum(), x, create_graph=True)[0]
    assert len(saved) > 2
    assert gradient.requires_grad


def test_compiled_functions_refuse():
    """PyTorch itself says that the backward pass of a compiled graph has no derivative."""
    torch._dynamo.reset()
    x, filters = X.clone().requires_grad_(), FILTERS["static"][0].clone().requires_grad_()
    compiled = torch.compile(lambda x, f: dynaconv.static_conv(x, f, activation="silu"), backend="aot_eager")
    gradient = torch.autograd.grad(compiled(x, filters).sum(), x, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        torch.autograd.grad(gradient.square().sum(), filters)
