"""Calls that are remembered for shapes, strides, dtypes and options: the same as without, and seen by whoever looks."""

import pytest
import torch

import dynaconv
from dynaconv import dispatch

from .problems import OPERATORS, Problem


@pytest.fixture(autouse=True)
def forgotten():
    dispatch._remembered.clear()


def arguments(kind, **options):
    inputs, keywords, _ = Problem(kind, 2, 9, 3, 4, 4, 5, **options).tensors()
    return inputs, keywords


def expected(kind, inputs, keywords):
    with dynaconv.backend("reference"):
        return OPERATORS[kind](**inputs, **keywords)


@pytest.mark.parametrize("kind", OPERATORS)
def test_other_numbers_of_the_same_shapes(kind):
    extras = ("static", "bias", "silu", "residual", "scale", "softmax")
    for seed in range(3):
        inputs, keywords = arguments(kind, extras=extras, seed=seed)
        torch.testing.assert_close(OPERATORS[kind](**inputs, **keywords), expected(kind, inputs, keywords))
    assert len(dispatch._remembered) == 1


@pytest.mark.parametrize("kind", OPERATORS)
def test_what_differs_is_validated_anew(kind):
    inputs, keywords = arguments(kind)
    OPERATORS[kind](**inputs, **keywords)
    first = "codes" if kind == "lowrank" else "filters"
    for changed in (
        {"x": inputs["x"].double()},
        {"x": inputs["x"].transpose(1, 2).contiguous().transpose(1, 2)},
        {"residual": True},
        {"padding": 1},
        {"output_scale": 2},
        {first: inputs[first].bfloat16()},
    ):
        call = {**inputs, **keywords, **changed}
        with dynaconv.backend("reference"):
            right = OPERATORS[kind](**call)
        torch.testing.assert_close(OPERATORS[kind](**call), right, msg=str(changed.keys()))
    with pytest.raises(TypeError, match="residual must be True or False"):
        OPERATORS[kind](**inputs, **keywords | {"residual": 1})
    with pytest.raises(ValueError, match="padding must be"):
        OPERATORS[kind](**inputs, **keywords | {"padding": [1]})
    with pytest.raises(TypeError, match="x must be a dense tensor"):
        OPERATORS[kind](**inputs | {"x": inputs["x"].to_sparse()}, **keywords)


def test_tensors_that_memory_does_not_hold_as_they_are():
    """The imaginary part of a conjugate is negated when it is read."""
    filters, x = torch.randn(12, 4), torch.randn(2, 9, 12, dtype=torch.complex64).conj().imag
    assert x.is_neg()
    for _ in range(2):
        torch.testing.assert_close(
            dynaconv.static_conv(x, filters), dynaconv.static_conv(x.resolve_neg(), filters), rtol=0, atol=0
        )


def test_gradients_after_a_call_without():
    x, filters = torch.randn(2, 9, 12), torch.randn(12, 4)
    dynaconv.static_conv(x, filters)
    leaf = filters.clone().requires_grad_()
    y = dynaconv.static_conv(x, leaf)
    assert y.requires_grad
    with torch.no_grad():
        assert not dynaconv.static_conv(x, leaf).requires_grad
    with torch.inference_mode():
        assert dynaconv.static_conv(x, leaf).is_inference()


def test_tracers_profilers_and_modes_see_the_operator():
    x, filters = torch.randn(2, 9, 12), torch.randn(12, 4)
    dynaconv.static_conv(x, filters)
    with torch.profiler.profile() as profile:
        dynaconv.static_conv(x, filters)
    assert "dynaconv::static_conv" in {event.name for event in profile.events()}
    traced = torch.jit.trace(lambda x: dynaconv.static_conv(x, filters), (x,))
    torch.testing.assert_close(traced(2 * x), dynaconv.static_conv(2 * x, filters))

    class Seen(torch.utils._python_dispatch.TorchDispatchMode):
        names: list[str] = []  # noqa: RUF012 (a mode of this test)

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.names.append(str(function))
            return function(*args, **(kwargs or {}))

    with Seen():
        dynaconv.static_conv(x, filters)
    assert "dynaconv.static_conv.default" in Seen.names


def test_a_state_that_moves_on_is_a_changed_tensor():
    """Autograd notices that what it has saved was overwritten."""
    filters = torch.randn(12, 4, requires_grad=True)
    state = torch.zeros(2, 3, 12)
    loss = (dynaconv.static_conv(torch.randn(2, 9, 12), filters, initial_state=state)).sum()
    for _ in range(2):
        before = state._version
        with torch.no_grad():
            dynaconv.static_conv(torch.randn(2, 9, 12), filters, state=state)
        assert state._version > before
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_wrong_rows_change_nothing(dtype):
    x, filters, state = torch.randn(2, 1, 12), torch.randn(12, 4), torch.randn(4, 3, 12)
    before = state.clone()
    good = torch.tensor([3, -1], dtype=dtype)
    dynaconv.static_conv(x, filters, state=state.clone(), state_indices=good)
    for wrong in ([0, 0], [1, 4]):
        with pytest.raises(ValueError, match=r"state_indices must be different rows of state, 0..3, or -1; got"):
            dynaconv.static_conv(x, filters, state=state, state_indices=torch.tensor(wrong, dtype=dtype))
    assert torch.equal(state, before)


def test_only_so_many_are_kept(monkeypatch):
    monkeypatch.setattr(dispatch, "_KEPT", 3)
    for length in range(1, 9):
        x = torch.randn(1, length, 12)
        assert dynaconv.static_conv(x, torch.ones(12, 2)).shape == x.shape
        assert len(dispatch._remembered) <= 3


def test_tensors_without_numbers():
    x, filters = torch.empty(2, 9, 12, device="meta"), torch.empty(12, 4, device="meta")
    assert dynaconv.static_conv(x, filters).device.type == "meta"
    y = dynaconv.static_conv(x.requires_grad_(), filters)
    assert torch.autograd.grad(y.sum(), x)[0].shape == x.shape


def test_a_default_device_elsewhere():
    x, filters, ends = torch.randn(1, 9, 12), torch.randn(12, 4), torch.tensor([0, 4, 9])
    expected = dynaconv.static_conv(x, filters, cu_seqlens=ends)
    dispatch._remembered.clear()
    with torch.device("meta"):
        assert torch.equal(dynaconv.static_conv(x, filters, cu_seqlens=ends), expected)


@pytest.mark.parametrize("kind", OPERATORS)
def test_batches_of_gradients(kind):
    inputs, keywords = arguments(kind)
    x = inputs["x"].requires_grad_()
    y = OPERATORS[kind](**inputs, **keywords)
    several = torch.randn(3, *y.shape)
    batched = torch.autograd.grad(y, x, several, is_grads_batched=True, retain_graph=True)[0]
    for grad, gradient in zip(several, batched, strict=True):
        torch.testing.assert_close(gradient, torch.autograd.grad(y, x, grad, retain_graph=True)[0])


def test_rows_of_a_buffer_without_numbers():
    x, filters, state = torch.randn(1, 1, 12), torch.randn(12, 4), torch.zeros(0, 3, 12)
    dynaconv.static_conv(x, filters, state=state, state_indices=torch.tensor([-1]))
    with pytest.raises(ValueError, match="state_indices must be different rows of state"):
        dynaconv.static_conv(x, filters, state=state, state_indices=torch.tensor([0]))


@pytest.mark.parametrize("span", [slice(0, 1), slice(0, 2), slice(1, 3), slice(2, 4)], ids=str)
def test_tokens_that_lie_in_the_state(span):
    """Whole numbers, which are summed without rounding in any order."""
    filters = torch.randint(-4, 5, (12, 4)).float()
    states = [torch.arange(2.0 * 4 * 12).view(2, 4, 12).clone() for _ in range(2)]
    ours = dynaconv.static_conv(states[0][:, span], filters, state=states[0])
    with dynaconv.backend("reference"):
        assert torch.equal(ours, dynaconv.static_conv(states[1][:, span], filters, state=states[1]))
    assert torch.equal(*states)


def test_a_flag_is_no_tensor():
    with pytest.raises(TypeError, match="return_final_state must be True or False; got Tensor"):
        dynaconv.static_conv(torch.randn(1, 3, 12), torch.randn(12, 4), return_final_state=torch.tensor(True))


def test_inference_tensors_are_overwritten_in_inference_mode_alone():
    x, filters = torch.randn(2, 1, 12), torch.randn(12, 4)
    with torch.inference_mode():
        state = torch.zeros(2, 3, 12)
        dynaconv.static_conv(x, filters, state=state)
    with torch.no_grad(), pytest.raises(RuntimeError, match="inference tensor"):
        dynaconv.static_conv(x, filters, state=state)


def test_the_first_call_records_what_the_next_ones_record():
    """Activation checkpointing compares them."""
    x, filters = torch.randn(2, 9, 12), torch.randn(2, 9, 3, 4, requires_grad=True)
    counts = []
    for _ in range(2):
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=saved: s.append(t) or t, lambda t: t):
            dynaconv.dynamic_conv(x, filters, normalize="softmax")
        counts.append(len(saved))
    assert counts[0] == counts[1] > 0
