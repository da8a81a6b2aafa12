"""Any chunking of a sequence gives the numbers of the whole."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dynaconv

BACKENDS = ["reference", "cpu"]


def filters_of(kind, length, width):
    return torch.randn((3, width) if kind == "static" else (2, length, 3, width))


def conv(kind, x, filters, span, **options):
    if kind == "static":
        return dynaconv.static_conv(x[:, span], filters, **options)
    return dynaconv.dynamic_conv(x[:, span], filters[:, span], **options)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["static", "dynamic"])
@settings(deadline=None, derandomize=True, max_examples=25)
@given(cuts=st.lists(st.integers(0, 23), max_size=6), width=st.sampled_from([1, 2, 4, 31]))
def test_chunks_equal_the_whole(backend, kind, cuts, width):
    x, filters = torch.randn(2, 23, 12), filters_of(kind, 23, width)
    edges = [0, *sorted(cuts), 23]
    spans = [slice(a, b) for a, b in zip(edges, edges[1:], strict=False)]
    with dynaconv.backend(backend):
        whole, last = conv(kind, x, filters, slice(None), return_final_state=True)
        state, buffer, pieces, in_place = None, torch.zeros(2, width - 1, 12), [], []
        for span in spans:
            y, state = conv(kind, x, filters, span, initial_state=state, return_final_state=True)
            pieces.append(y)
            in_place.append(conv(kind, x, filters, span, state=buffer))
    torch.testing.assert_close(torch.cat(pieces, 1), whole)
    torch.testing.assert_close(torch.cat(in_place, 1), whole)
    assert torch.equal(state, last)
    assert torch.equal(buffer, last)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["static", "dynamic"])
@pytest.mark.parametrize("cut", [1, 2, 9])
def test_gradients_flow_through_the_state(backend, kind, cut):
    x, filters, grad = torch.randn(2, 10, 12), filters_of(kind, 10, 4), torch.randn(2, 10, 12)

    def gradients(chunked):
        a, f = x.clone().requires_grad_(), filters.clone().requires_grad_()
        with dynaconv.backend(backend):
            if chunked:
                first, state = conv(kind, a, f, slice(0, cut), return_final_state=True)
                second = conv(kind, a, f, slice(cut, None), initial_state=state)
                y = torch.cat([first, second], 1)
            else:
                y = conv(kind, a, f, slice(None))
        return torch.autograd.grad(y, (a, f), grad)

    for chunked, whole in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(chunked, whole)


def test_leaving_out_the_state_is_noticed():
    x, filters = torch.randn(2, 10, 12), filters_of("dynamic", 10, 4)
    whole = conv("dynamic", x, filters, slice(None))
    assert not torch.allclose(conv("dynamic", x, filters, slice(5, None)), whole[:, 5:])


def test_state_is_for_causal_inference():
    x, filters = torch.randn(2, 10, 12, requires_grad=True), filters_of("dynamic", 10, 4)
    state = torch.zeros(2, 3, 12)
    with pytest.raises(ValueError, match="state is overwritten in place and carries no gradient"):
        dynaconv.dynamic_conv(x, filters, state=state)
    with pytest.raises(ValueError, match="a state needs padding=\"causal\".*'same'"):
        dynaconv.dynamic_conv(x, filters, padding="same", return_final_state=True)
    with pytest.raises(ValueError, match="either initial_state or state"):
        dynaconv.dynamic_conv(x.detach(), filters, state=state, initial_state=state)
    with pytest.raises(ValueError, match=r"initial_state must be \[B, W - 1, D\] = \[2, 3, 12\]; got \[2, 4, 12\]"):
        dynaconv.dynamic_conv(x, filters, initial_state=torch.zeros(2, 4, 12))
