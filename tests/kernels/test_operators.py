"""Outputs and all gradients of the reference and of all kernels, over shapes, dtypes, strides and keywords."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings

import dynaconv

from ..conftest import check_guards
from .backends import BACKENDS, INTERPRETED, KERNELS
from .oracle import loop_conv
from .problems import EXTRAS, OPERATORS, Problem

EVERYTHING = tuple(e for e in EXTRAS if e != "packed")


@pytest.mark.parametrize("backend", KERNELS, ids=str)
@pytest.mark.parametrize("kind", OPERATORS)
def test_kernels_are_as_accurate_as_the_reference(kind, backend):
    @settings(deadline=None, derandomize=True, max_examples=backend.examples, suppress_health_check=list(HealthCheck))
    @given(problem=backend.problems(kind))
    def check(problem):
        problem.check(backend.name)

    check()


@pytest.mark.parametrize("backend", KERNELS, ids=str)
@pytest.mark.parametrize("extra", [*EXTRAS, None])
@pytest.mark.parametrize("kind", OPERATORS)
def test_every_keyword(kind, extra, backend):
    backend.problem(kind, extras=() if extra is None else (extra,)).check(backend.name)


@pytest.mark.skipif(INTERPRETED, reason="too large for the interpreter")
@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes",
    [
        {"length": 4097, "heads": 3, "head_size": 1, "width": 4},
        {"length": 2047, "heads": 1, "head_size": 96, "width": 3},
        {"length": 31, "heads": 1000, "head_size": 1, "width": 4},
        {"length": 50, "heads": 16, "head_size": 128, "width": 8},
        {"length": 129, "heads": 2, "head_size": 96, "width": 4, "rank": 64},
        {"length": 64, "heads": 8, "head_size": 256, "width": 2, "rank": 128},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", OPERATORS)
@pytest.mark.parametrize("backend", KERNELS, ids=str)
def test_large_sizes(kind, sizes, backend):
    backend.problem(kind, batch=1, **sizes).check(backend.name)


@pytest.mark.parametrize(
    ("backend", "dtypes"), [(b, pair) for b in KERNELS for pair in b.dtypes if len(set(pair)) == 1], ids=str
)
@pytest.mark.parametrize("kind", OPERATORS)
def test_the_rule_catches_a_wrong_kernel(kind, backend, dtypes):
    problem = backend.problem(kind, dtypes=dtypes, seed=3)
    problem.check(backend.name)
    name = "basis" if kind == "lowrank" else "filters"
    filters = problem.tensors()[0][name]
    dropped = filters.clone()
    dropped[..., -2] = 0
    for wrong in (dropped, filters.flip(-1)):
        with pytest.raises(AssertionError, match="error"):
            problem.check(backend.name, **{name: wrong})
    for gradient in [result for result in problem.run(backend.name) if result.startswith("gradient")]:
        with pytest.raises(AssertionError, match=gradient):
            problem.check(backend.name, lambda results, g=gradient: results | {g: torch.zeros_like(results[g])})


@pytest.mark.parametrize("padding", ["causal", "same", 0, 2])
@pytest.mark.parametrize(("T", "H", "W"), [(7, 2, 3), (4, 6, 9), (1, 3, 4)])
def test_reference_is_the_definition(padding, T, H, W):
    x, filters = torch.randn(2, T, 6, dtype=torch.float64), torch.randn(2, T, H, W, dtype=torch.float64)
    codes, basis = torch.randn(2, T, 5, dtype=torch.float64), torch.randn(5, 6, W, dtype=torch.float64)
    left = dynaconv.functional.left_padding(padding, W)
    product = torch.einsum("btr,rdw->btdw", codes, basis)
    static, bias = filters[0, 0], torch.randn(6, dtype=torch.float64)
    taps = static.repeat_interleave(6 // H, 0)
    with dynaconv.backend("reference"):
        results = {
            "dynamic": (dynaconv.dynamic_conv(x, filters, padding=padding), loop_conv(x, filters, left)),
            "static": (dynaconv.static_conv(x, static, padding=padding), loop_conv(x, static.expand(2, T, H, W), left)),
            "softmax": (
                dynaconv.dynamic_conv(x, filters, padding=padding, normalize="softmax"),
                loop_conv(x, filters.softmax(-1), left),
            ),
            "lowrank": (dynaconv.lowrank_conv(x, codes, basis, padding=padding), loop_conv(x, product, left)),
            "all": (
                dynaconv.lowrank_conv(
                    x,
                    codes,
                    basis,
                    padding=padding,
                    static=static,
                    bias=bias,
                    activation="silu",
                    residual=True,
                    output_scale=0.3,
                ),
                0.3 * (torch.nn.functional.silu(loop_conv(x, product + taps, left) + bias) + x),
            ),
        }
    for name, (actual, expected) in results.items():
        torch.testing.assert_close(actual, expected, msg=name)
    assert not torch.allclose(results["dynamic"][0], loop_conv(x, filters.flip(-1), left))


@pytest.mark.parametrize("kind", OPERATORS)
def test_reference_gradients_of_any_order(kind):
    problem = Problem(
        kind, 2, 3, 2, 2, 4, 3, "same", ("static", "silu", "bias", "residual", "softmax"), (torch.float64,) * 2
    )
    inputs, keywords, _ = problem.tensors()
    leaves = [tensor.requires_grad_() for tensor in inputs.values()]

    def function(*tensors):
        with dynaconv.backend("reference"):
            return OPERATORS[kind](**dict(zip(inputs, tensors, strict=True)), **keywords)

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


@pytest.mark.parametrize("backend", BACKENDS, ids=str)
@pytest.mark.parametrize("extras", [("static",), EVERYTHING], ids=["plain", "all keywords"])
@pytest.mark.parametrize("kind", OPERATORS)
def test_packed_sequences_are_convolved_one_by_one(kind, extras, backend):
    """Outputs, final states and all gradients; sequences of length 0, 1 and shorter than the filter among them."""
    problem = backend.problem(kind, length=31, extras=(*extras, "packed"))
    inputs, keywords, grads = problem.tensors()
    ends = keywords.pop("cu_seqlens").tolist()
    assert {b - a for a, b in zip(ends, ends[1:])} >= {0, 3}
    packed = problem.run(backend.name)
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
    outputs, states = [], []
    with backend.used():
        for n, (start, end) in enumerate(zip(ends, ends[1:])):
            own = dict(leaves)
            for name in ("x", "codes", *(["filters"] if kind == "dynamic" else [])):
                if name in own:
                    own[name] = own[name][:, start:end]
            if "initial_state" in own:
                own["initial_state"] = own["initial_state"][n : n + 1]
            y = OPERATORS[kind](**own, **keywords)
            outputs.append(y[0] if isinstance(y, tuple) else y)
            states += [y[1]] if isinstance(y, tuple) else []
    results = [torch.cat(outputs, 1), *([torch.cat(states)] if states else [])]
    gradients = torch.autograd.grad(results, list(leaves.values()), grads)
    expected = [*results, *gradients]
    for (name, actual), value in zip(packed.items(), expected, strict=True):
        torch.testing.assert_close(actual, value, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("backend", KERNELS, ids=str)
@pytest.mark.parametrize("extras", [(), EVERYTHING, ("packed", "static")], ids=["plain", "all keywords", "packed"])
@pytest.mark.parametrize("sizes", [(2, 33, 3, 16, 5), (1, 1, 1, 7, 31), (2, 37, 2, 65, 9), (2, 5, 12, 1, 4)])
@pytest.mark.parametrize("kind", OPERATORS)
def test_every_output_is_written_and_nothing_else(kind, sizes, extras, backend, poisoned):
    results = backend.problem(kind, *sizes, extras=extras).run(backend.name)
    assert all(result.isfinite().all() for result in results.values())
    check_guards(poisoned)


@pytest.mark.parametrize("backend", KERNELS, ids=str)
@pytest.mark.parametrize("kind", ["dynamic", "lowrank"])
def test_nan_stays_where_it_is(kind, backend):
    """An input that is not a number reaches the outputs whose window holds it, and no others."""
    inputs, _, _ = backend.problem(kind, 1, 20, 2, 4, 3).tensors()
    inputs["x"][0, 7, 5] = float("nan")
    with backend.used():
        bad = OPERATORS[kind](**inputs).isnan().nonzero().tolist()
    assert bad == [[0, t, 5] for t in (7, 8, 9)]


@pytest.mark.parametrize("backend", BACKENDS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_silu_of_the_extreme(dtype, backend):
    if (dtype, dtype) not in backend.dtypes:
        pytest.skip("not computed by these kernels")
    z = torch.tensor(
        [-1e300 if dtype == torch.float64 else -1e30, -800, -90, -1, 0, 1, 90, 1e30, torch.inf, torch.nan, -torch.inf],
        dtype=dtype,
    )
    with backend.used():
        y = dynaconv.static_conv(z.view(1, -1, 1), torch.ones(1, 1, dtype=dtype), activation="silu")
    torch.testing.assert_close(y.flatten(), torch.nn.functional.silu(z), equal_nan=True)


@pytest.mark.parametrize("backend", KERNELS, ids=str)
@pytest.mark.parametrize("kind", OPERATORS)
def test_repeats_and_thread_counts_give_the_same_bits(kind, backend):
    problem = backend.problem(kind, 2, 90, 3, 24, 7, extras=("static", "bias", "silu"))
    threads = torch.get_num_threads()
    first = problem.run(backend.name)
    try:
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            again = problem.run(backend.name)
            assert all(torch.equal(first[name], again[name]) for name in first)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("backend", BACKENDS, ids=str)
@pytest.mark.parametrize("kind", OPERATORS)
def test_only_gradients_that_are_wanted(kind, backend):
    """Frozen inputs get none, and the others the same as if nothing were frozen."""
    problem = backend.problem(kind, extras=("static", "bias", "state"))
    everything = problem.run(backend.name)
    inputs, keywords, grads = problem.tensors()
    for name in inputs:
        leaves = {n: tensor.detach().requires_grad_(n == name) for n, tensor in inputs.items()}
        with backend.used():
            outputs = OPERATORS[kind](**leaves, **keywords)
        pairs = [(y, g) for y, g in zip(outputs, grads) if y.requires_grad]
        torch.autograd.backward([y for y, _ in pairs], [g for _, g in pairs])
        torch.testing.assert_close(leaves[name].grad, everything[f"gradient of {name}"])
        assert all(leaf.grad is None for n, leaf in leaves.items() if n != name)
