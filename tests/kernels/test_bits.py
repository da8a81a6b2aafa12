"""The same bits from the CPU kernels however sequences come: alone or in batches, in chunks, packed, on any threads."""

import pytest
import torch

import dynaconv
from dynaconv.kernels import cpu

pytestmark = pytest.mark.skipif(cpu.refuses((torch.ones(1),)) is not None, reason="needs the CPU kernels")

B, T, D, W = 3, 150, 72, 4
KINDS = ("static", "lightconv", "headwise", "odd heads", "lowrank", "lowrank, channels first")


def filters_of(kind: str, dtype: torch.dtype) -> tuple[str, list[torch.Tensor], list[torch.Tensor]]:
    """The operator's name, filters for every token [B, T, ...], and filters that all tokens share."""
    torch.manual_seed(0)
    shared = {"static": (D, W), "lightconv": (6, W)}
    if kind in shared:
        return "static_conv", [], [torch.randn(shared[kind]).to(dtype)]
    if not kind.startswith("lowrank"):
        return "dynamic_conv", [torch.randn(B, T, 9 if kind == "headwise" else 24, W).to(dtype)], []
    basis = torch.randn(5, D, W) if kind == "lowrank" else torch.randn(D, 5, W).transpose(0, 1)
    return "lowrank_conv", [torch.randn(B, T, 5).to(dtype)], [basis.to(dtype)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_bits(kind, dtype):
    name, own, shared = filters_of(kind, dtype)
    x, bias, static = torch.randn(B, T, D).to(dtype), torch.randn(D).to(dtype), torch.randn(D, W).to(dtype)
    options = {"bias": bias, "activation": "silu", "residual": True, "output_scale": 0.7}
    options |= {} if name == "static_conv" else {"static": static}

    def run(x, *own, **keywords):
        with torch.no_grad():
            return getattr(dynaconv, name)(x, *own, *shared, **options, **keywords)

    whole = run(x, *own)
    assert torch.equal(whole, getattr(dynaconv, name)(x.requires_grad_(), *own, *shared, **options)), "with gradients"
    x = x.detach()
    assert torch.equal(whole, torch.cat([run(x[b : b + 1], *(f[b : b + 1] for f in own)) for b in range(B)])), "alone"
    packed = run(x.reshape(1, B * T, D), *(f.flatten(0, 1)[None] for f in own), cu_seqlens=torch.arange(B + 1) * T)
    assert torch.equal(whole, packed.view(B, T, D)), "packed"
    state, chunks, start = torch.zeros(B, W - 1 + 2, D, dtype=dtype), [], 0
    for size in (1, 1, 70, 3, 75):
        part = slice(start, start := start + size)
        chunks.append(run(x[:, part], *(f[:, part] for f in own), state=state))
    assert torch.equal(whole, torch.cat(chunks, dim=1)), "in chunks"
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            assert torch.equal(whole, run(x, *own)), f"on {count} threads"
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_do_not_depend_on_threads(kind):
    name, own, shared = filters_of(kind, torch.float32)
    leaves = [torch.randn(B, T, D), *own, *shared]
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            inputs = [leaf.clone().requires_grad_() for leaf in leaves]
            y = getattr(dynaconv, name)(*inputs, activation="silu")
            results.append(torch.autograd.grad(y.square().sum(), inputs))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("tokens", [1, 7, 8])
@pytest.mark.parametrize("width", [3, 4])
def test_few_tokens_of_low_rank(tokens, width):
    """The basis is read where it lies, instead of packed, for fewer than eight tokens and four taps."""
    leaves = torch.randn(1, tokens, D), torch.randn(1, tokens, 5), torch.randn(D, 5, width)
    results = []
    for name in ("cpu", "reference"):
        x, codes, basis = (leaf.clone().requires_grad_() for leaf in leaves)
        with dynaconv.backend(name):
            y = dynaconv.lowrank_conv(x, codes, basis.transpose(0, 1), activation="silu")
        results.append((y, *torch.autograd.grad(y.square().sum(), [x, codes, basis])))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


def test_rows_of_a_buffer_without_a_sequence():
    x, filters, state = torch.randn(3, 2, 8), torch.randn(8, 3), torch.randn(4, 3, 8)
    before, indices = state.clone(), torch.tensor([2, -1, 0])
    with torch.no_grad():
        y = dynaconv.static_conv(x, filters, state=state, state_indices=indices)
    assert (y[1] == 0).all()
    assert torch.equal(state[[1, 3]], before[[1, 3]])
    assert torch.equal(state[2], torch.cat([before[2, 2:], x[0]]))
    assert torch.equal(state[0], torch.cat([before[0, 2:], x[2]]))
    expected = dynaconv.static_conv(x[[0, 2]], filters, initial_state=before[[2, 0], 1:])
    assert torch.equal(y[[0, 2]], expected)
