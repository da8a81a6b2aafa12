"""Any chunking of a sequence gives the numbers of the whole; buffers of streams, their rows and their past."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dynaconv

from .backends import BACKENDS, KERNELS
from .problems import OPERATORS, Problem

TOKENWISE = {"static": ["x"], "dynamic": ["x", "filters"], "lowrank": ["x", "codes"]}


def conv(kind, inputs, span, rows=slice(None), **options):
    """The operator on a span of the tokens, of some rows of the batch."""
    own = inputs | {name: inputs[name][rows, span] for name in TOKENWISE[kind]}
    return OPERATORS[kind](**own, **options)


def spans_of(cuts, length):
    edges = [0, *sorted(cuts), length]
    return [slice(a, b) for a, b in zip(edges, edges[1:])]


@pytest.mark.parametrize("backend", BACKENDS, ids=str)
@pytest.mark.parametrize("kind", OPERATORS)
@settings(deadline=None, derandomize=True, max_examples=15)
@given(cuts=st.lists(st.integers(0, 23), max_size=6), width=st.sampled_from([1, 2, 4, 31]), spare=st.integers(0, 4))
def test_chunks_equal_the_whole(backend, kind, cuts, width, spare):
    inputs, _, _ = backend.problem(kind, 2, 23, 3, 4, width, extras=("static",)).tensors()
    with backend.used():
        whole, last = conv(kind, inputs, slice(None), return_final_state=True)
        state, buffer, pieces, in_place = None, torch.zeros(2, width - 1 + spare, 12), [], []
        for span in spans_of(cuts, 23):
            y, state = conv(kind, inputs, span, initial_state=state, return_final_state=True)
            pieces.append(y)
            in_place.append(conv(kind, inputs, span, state=buffer))
    torch.testing.assert_close(torch.cat(pieces, 1), whole)
    torch.testing.assert_close(torch.cat(in_place, 1), whole)
    assert torch.equal(state, last)
    assert torch.equal(buffer[:, spare:], last)


@pytest.mark.parametrize("backend", BACKENDS, ids=str)
@pytest.mark.parametrize("kind", OPERATORS)
@settings(deadline=None, derandomize=True, max_examples=15)
@given(cuts=st.lists(st.integers(0, 10), max_size=4), width=st.sampled_from([1, 2, 4, 17]))
def test_gradients_flow_through_the_state(backend, kind, cuts, width):
    """Into all inputs and the first state, from the outputs and the final state."""
    leaves, _, _ = backend.problem(kind, 2, 10, 3, 4, width, extras=("static", "bias")).tensors()
    leaves["initial_state"] = torch.randn(2, width - 1, 12)
    grads = [torch.randn(2, 10, 12), torch.randn(2, width - 1, 12)]

    def gradients(spans):
        inputs = {name: leaf.clone().requires_grad_() for name, leaf in leaves.items()}
        others = {name: tensor for name, tensor in inputs.items() if name != "initial_state"}
        state, pieces = inputs["initial_state"], []
        for span in spans:
            y, state = conv(kind, others, span, initial_state=state, return_final_state=True)
            pieces.append(y)
        return torch.autograd.grad([torch.cat(pieces, 1), state], list(inputs.values()), grads)

    with backend.used():
        chunked, whole = gradients(spans_of(cuts, 10)), gradients([slice(0, 10)])
    for a, b in zip(chunked, whole, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("backend", BACKENDS, ids=str)
@pytest.mark.parametrize("kind", OPERATORS)
def test_packed_chunks_with_states_of_their_own(kind, backend):
    """Three streams, a chunk of each packed into one row, twice."""
    inputs, _, _ = backend.problem(kind, 3, 12, 3, 4, 5).tensors()
    whole = conv(kind, inputs, slice(None))
    buffer = torch.zeros(3, 4, 12)
    done, results = [0, 0, 0], [[], [], []]
    for counts in ([5, 0, 12], [7, 12, 0]):
        packed = dict(inputs)
        for name in TOKENWISE[kind]:
            chunks = [inputs[name][n, done[n] : done[n] + c] for n, c in enumerate(counts)]
            packed[name] = torch.cat(chunks)[None]
        ends = torch.tensor([0, *torch.tensor(counts).cumsum(0).tolist()])
        with backend.used():
            y = OPERATORS[kind](**packed, cu_seqlens=ends, state=buffer)
        for n, count in enumerate(counts):
            results[n].append(y[0, ends[n] : ends[n + 1]])
            done[n] += count
    torch.testing.assert_close(torch.stack([torch.cat(parts) for parts in results]), whole)
    assert torch.equal(buffer, inputs["x"][:, -4:])


@pytest.mark.parametrize("backend", BACKENDS, ids=str)
@pytest.mark.parametrize("kind", OPERATORS)
def test_rows_of_a_buffer(kind, backend):
    """Continuous batching: streams live in any rows of a larger buffer, and -1 marks rows of padding."""
    inputs, _, _ = backend.problem(kind, 4, 9, 3, 4, 5).tensors()
    whole = conv(kind, inputs, slice(None))
    buffer = torch.full((7, 4, 12), 3.0)
    rows = torch.tensor([5, -1, 0, 2])
    buffer[rows[rows >= 0]] = 0
    untouched = [1, 3, 4, 6]
    with backend.used():
        pieces = [conv(kind, inputs, span, state=buffer, state_indices=rows) for span in spans_of([1, 2, 6], 9)]
        conv(kind, inputs, slice(0, 5), state=torch.zeros(0, 4, 12), state_indices=torch.full((4,), -1))
        idle = buffer.clone()
        conv(kind, inputs, slice(0, 5), state=idle, state_indices=torch.full((4,), -1))
    assert torch.equal(idle, buffer)
    y = torch.cat(pieces, 1)
    torch.testing.assert_close(y[[0, 2, 3]], whole[[0, 2, 3]])
    assert (y[1] == 0).all()
    assert torch.equal(buffer[[5, 0, 2]], inputs["x"][[0, 2, 3], -4:])
    assert (buffer[untouched] == 3).all()


@pytest.mark.parametrize("backend", KERNELS, ids=str)
@pytest.mark.parametrize("kind", OPERATORS)
def test_rollback_forgets_rejected_tokens(kind, backend):
    """Speculative decoding: three tokens at once, of which each stream keeps another number."""
    inputs, _, _ = backend.problem(kind, 3, 12, 3, 4, 4).tensors()
    buffer = torch.zeros(5, 3 + 3, 12)
    rows = torch.tensor([4, 1, 0])
    drafted = inputs | {"x": inputs["x"].clone()}
    drafted["x"][:, 6:9] += 1
    with backend.used():
        conv(kind, inputs, slice(0, 6), state=buffer, state_indices=rows)
        conv(kind, drafted, slice(6, 9), state=buffer, state_indices=rows)
    dynaconv.rollback(buffer, torch.tensor([3, 2, 0]), width=4, state_indices=rows)
    for n, kept in enumerate((6, 7, 9)):
        true = torch.cat([inputs["x"][n, :6], drafted["x"][n, 6:kept]])
        assert torch.equal(buffer[rows[n], 3:], true[-3:])
    own = buffer[rows[:1]].clone()
    rest = conv(kind, inputs, slice(6, 12), slice(0, 1), state=own)
    torch.testing.assert_close(rest, conv(kind, inputs, slice(None), slice(0, 1))[:, 6:])


def test_rollback_counts():
    buffer = torch.zeros(2, 5, 4)
    for count in (-1, 3, torch.tensor([0, 3])):
        with pytest.raises(
            ValueError, match=r"count must be in 0\.\.2 \(S - \(W - 1\)\), what the state has to spare; got"
        ):
            dynaconv.rollback(buffer, count, width=4)
    with pytest.raises(TypeError, match=r"count must be an integer or a tensor of integers; got torch\.float32"):
        dynaconv.rollback(buffer, 1.5, width=4)
    with pytest.raises(ValueError, match=r"count must be a number or \[N\] = \[2\]; got \[3\]"):
        dynaconv.rollback(buffer, torch.tensor([1, 1, 1]), width=4)
    with pytest.raises(TypeError, match="state_indices must be a tensor of int32 or int64; got list"):
        dynaconv.rollback(buffer, 1, width=4, state_indices=[0])


def test_leaving_out_the_state_is_noticed():
    inputs, _, _ = Problem("dynamic", 2, 10, 3, 4, 4).tensors()
    whole = conv("dynamic", inputs, slice(None))
    assert not torch.allclose(conv("dynamic", inputs, slice(5, None)), whole[:, 5:])
