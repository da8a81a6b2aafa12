"""Outputs and all gradients of every implementation, over shapes, dtypes and strides."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dynaconv

from ..conftest import check_guards
from .oracle import assert_as_accurate, loop_conv, outputs_and_gradients, reference

OPERATORS = {"static": dynaconv.static_conv, "dynamic": dynaconv.dynamic_conv}
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
MIXED = [
    (torch.bfloat16, torch.float32),
    (torch.float32, torch.float16),
    (torch.float32, torch.float64),
    (torch.float64, torch.float32),
]
LAYOUTS = ["contiguous", "sliced", "transposed", "expanded", "repeated"]


@st.composite
def cases(draw):
    """Sizes with 0, 1, primes and W > T; any head count that divides D; any padding."""
    channels = draw(st.sampled_from([1, 2, 3, 7, 16, 24, 65, 300]))
    heads = draw(st.sampled_from([h for h in (1, 2, 3, 5, 16) if h * channels <= 1040]))
    width = draw(st.sampled_from([1, 2, 3, 4, 5, 8, 9, 16, 31]))
    sizes = draw(st.sampled_from([0, 1, 2, 6])), draw(st.sampled_from([0, 1, 2, 3, 7, 30, 50, 67]))
    padding = draw(st.one_of(st.sampled_from(["causal", "same"]), st.integers(0, width - 1)))
    dtypes = draw(st.sampled_from([(d, d) for d in DTYPES] + MIXED))
    return {
        "sizes": (*sizes, heads * channels, heads, width), "padding": padding, "dtypes": dtypes,
        "normalize": draw(st.sampled_from([None, "softmax"])), "seed": draw(st.integers(0, 2**16)),
        "layouts": draw(st.tuples(*[st.sampled_from(LAYOUTS)] * 2)), "expanded_grad": draw(st.booleans()),
    }  # fmt: skip


def make(shape, dtype, layout, generator):
    """Random numbers of a shape in memory that is laid out otherwise, with NaN in every gap."""
    if layout == "sliced":
        wide = torch.full([n + 5 for n in shape], float("nan"), dtype=dtype)
        return wide[tuple(slice(2, 2 + n) for n in shape)].copy_(torch.randn(shape, generator=generator).to(dtype))
    if layout == "transposed":
        return torch.randn((*shape[:-2], shape[-1], shape[-2]), generator=generator).to(dtype).transpose(-1, -2)
    if layout == "expanded" and shape[0] > 0:
        return torch.randn((1, *shape[1:]), generator=generator).to(dtype).expand(shape)
    if layout == "repeated":
        return torch.randn((*shape[:-1], 1), generator=generator).to(dtype).expand(shape)
    return torch.randn(shape, generator=generator).to(dtype)


def inputs_of(kind, case):
    B, T, D, H, W = case["sizes"]
    generator = torch.Generator().manual_seed(case["seed"])
    shape = (H, W) if kind == "static" else (B, T, H, W)
    x = make((B, T, D), case["dtypes"][0], case["layouts"][0], generator)
    filters = make(shape, case["dtypes"][1], case["layouts"][1], generator)
    grad = None if case["expanded_grad"] else torch.randn(B, T, D, generator=generator).to(x.dtype)
    return [x, filters], grad


def check(kind, case, change=lambda results: results):
    """The Numba kernels against the reference, in the same dtype and in fp64."""
    inputs, grad = inputs_of(kind, case)
    options = {"padding": case["padding"], "normalize": case["normalize"]}
    with dynaconv.backend("cpu"):
        actual = outputs_and_gradients(lambda *a: OPERATORS[kind](*a, **options), inputs, grad)
    eager = outputs_and_gradients(reference(OPERATORS[kind], **options), inputs, grad)
    wide = [tensor.double() for tensor in inputs]
    exact = outputs_and_gradients(reference(OPERATORS[kind], **options), wide, None if grad is None else grad.double())
    x, filters = wide[0].abs(), wide[1].softmax(-1) if case["normalize"] else wide[1].abs()
    plain = reference(OPERATORS[kind], padding=case["padding"])
    sizes = outputs_and_gradients(plain, [x, filters], None if grad is None else grad.double().abs())
    assert_as_accurate(change(actual), eager, exact, sizes)


@pytest.mark.parametrize("kind", OPERATORS)
@settings(deadline=None, derandomize=True, max_examples=80)
@given(case=cases())
def test_kernels_are_as_accurate_as_the_reference(kind, case):
    check(kind, case)


FIXED = {
    "sizes": (2, 40, 48, 3, 5), "padding": "causal", "dtypes": (torch.bfloat16, torch.bfloat16), "normalize": None,
    "seed": 0, "layouts": ("contiguous", "contiguous"), "expanded_grad": False,
}  # fmt: skip


@pytest.mark.parametrize("kind", OPERATORS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_rule_catches_a_wrong_kernel(kind, dtype):
    case = {**FIXED, "dtypes": (dtype, dtype)}
    inputs, grad = inputs_of(kind, case)

    def dropped_tap(*_):
        x, filters = inputs[0], inputs[1].clone()
        filters[..., -2] = 0
        return outputs_and_gradients(lambda *a: OPERATORS[kind](*a), [x, filters], grad)

    def flipped(*_):
        return outputs_and_gradients(lambda *a: OPERATORS[kind](*a), [inputs[0], inputs[1].flip(-1)], grad)

    def zero_gradient(results):
        return [results[0], results[1], torch.zeros_like(results[2])]

    check(kind, case)
    for mistake in (dropped_tap, flipped, zero_gradient):
        with pytest.raises(AssertionError, match="error"):
            check(kind, case, mistake)


@pytest.mark.parametrize("padding", ["causal", "same", 0, 2])
@pytest.mark.parametrize(("T", "H", "W"), [(7, 2, 3), (4, 6, 9), (1, 3, 4)])
def test_reference_is_the_definition(padding, T, H, W):
    x, filters = torch.randn(2, T, 6, dtype=torch.float64), torch.randn(2, T, H, W, dtype=torch.float64)
    left = dynaconv.functional.left_padding(padding, W)
    with dynaconv.backend("reference"):
        dynamic = dynaconv.dynamic_conv(x, filters, padding=padding)
        static = dynaconv.static_conv(x, filters[0, 0], padding=padding)
        softmax = dynaconv.dynamic_conv(x, filters, padding=padding, normalize="softmax")
    torch.testing.assert_close(dynamic, loop_conv(x, filters, left))
    torch.testing.assert_close(static, loop_conv(x, filters[0, 0].expand(2, T, H, W), left))
    torch.testing.assert_close(softmax, loop_conv(x, filters.softmax(-1), left))
    assert not torch.allclose(dynamic, loop_conv(x, filters.flip(-1), left))


@pytest.mark.parametrize("kind", OPERATORS)
def test_reference_gradients_of_any_order(kind):
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    shape = (2, 4) if kind == "static" else (2, 3, 2, 4)
    filters = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    function = reference(OPERATORS[kind], normalize="softmax", padding="same")
    assert torch.autograd.gradcheck(function, (x, filters))
    assert torch.autograd.gradgradcheck(function, (x, filters))


@pytest.mark.parametrize("kind", OPERATORS)
@pytest.mark.parametrize("sizes", [(2, 33, 48, 3, 5), (1, 1, 7, 1, 31), (3, 70, 130, 2, 16), (2, 5, 12, 12, 4)])
def test_every_output_is_written_and_nothing_else(kind, sizes, poisoned):
    with dynaconv.backend("cpu"):
        inputs, grad = inputs_of(kind, {**FIXED, "sizes": sizes, "dtypes": (torch.float32, torch.float32)})
        results = outputs_and_gradients(lambda *a: OPERATORS[kind](*a, padding="same"), inputs, grad)
    assert all(result.isfinite().all() for result in results)
    check_guards(poisoned)


def test_nan_stays_where_it_is():
    """An input that is not a number reaches the outputs whose window holds it, and no others."""
    x, filters = torch.randn(1, 20, 8), torch.randn(1, 20, 2, 3)
    x[0, 7, 5] = float("nan")
    y = dynaconv.dynamic_conv(x, filters)
    bad = y.isnan().nonzero().tolist()
    assert bad == [[0, t, 5] for t in (7, 8, 9)]


@pytest.mark.parametrize("kind", OPERATORS)
def test_repeats_and_thread_counts_give_the_same_bits(kind):
    inputs, grad = inputs_of(kind, {**FIXED, "sizes": (4, 200, 96, 4, 7), "dtypes": (torch.float32, torch.float32)})
    threads = torch.get_num_threads()
    first = outputs_and_gradients(lambda *a: OPERATORS[kind](*a), inputs, grad)
    try:
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            again = outputs_and_gradients(lambda *a: OPERATORS[kind](*a), inputs, grad)
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    finally:
        torch.set_num_threads(threads)
