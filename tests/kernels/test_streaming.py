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
@settings(deadline=None, derandomize=True, max_examples=15)
@given(cuts=st.lists(st.integers(0, 10), max_size=4), width=st.sampled_from([1, 2, 4, 17]))
def test_gradients_flow_through_the_state(backend, kind, cuts, width):
    """Into the inputs, the filters and the first state, from the outputs and the final state."""
    leaves = [torch.randn(2, 10, 12), filters_of(kind, 10, width), torch.randn(2, width - 1, 12)]
    grads = [torch.randn(2, 10, 12), torch.randn(2, width - 1, 12)]

    def gradients(edges):
        x, filters, first = (leaf.clone().requires_grad_() for leaf in leaves)
        state, pieces = first, []
        for a, b in zip(edges, edges[1:], strict=False):
            y, state = conv(kind, x, filters, slice(a, b), initial_state=state, return_final_state=True)
            pieces.append(y)
        return torch.autograd.grad([torch.cat(pieces, 1), state], [x, filters, first], grads)

    with dynaconv.backend(backend):
        chunked, whole = gradients([0, *sorted(cuts), 10]), gradients([0, 10])
    for a, b in zip(chunked, whole, strict=True):
        torch.testing.assert_close(a, b)


def test_leaving_out_the_state_is_noticed():
    x, filters = torch.randn(2, 10, 12), filters_of("dynamic", 10, 4)
    whole = conv("dynamic", x, filters, slice(None))
    assert not torch.allclose(conv("dynamic", x, filters, slice(5, None)), whole[:, 5:])
