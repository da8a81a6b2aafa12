"""Bad input: one clear error that names the argument, what came and what was expected, on every implementation."""

import os
import re

import numpy as np
import pytest
import torch

import dynaconv
from dynaconv.interop.causal_conv1d import causal_conv1d_fn

X = torch.randn(2, 10, 12)
DYNAMIC = torch.randn(2, 10, 3, 4)
STATIC = torch.randn(3, 4)
STATE = torch.zeros(2, 3, 12)
CODES, BASIS = torch.randn(2, 10, 5), torch.randn(5, 12, 4)
# `tests/kernels/test_triton.py` runs this file again in Triton's interpreter.
BACKENDS = ["reference", "cpu", *(["triton"] if os.environ.get("TRITON_INTERPRET") == "1" else [])]

CASES = {
    "x not a tensor": (lambda: dynaconv.static_conv([1.0], STATIC), TypeError, "x must be a floating-point tensor (fp16, bf16, fp32 or fp64); got list"),
    "x of integers": (
        lambda: dynaconv.static_conv(X.long(), STATIC), TypeError, "x must be a floating-point tensor (fp16, bf16, fp32 or fp64); got a tensor of torch.int64",
    ),
    "x of rank 2": (lambda: dynaconv.static_conv(X[0], STATIC), ValueError, "x must have 3 dimensions; got shape [10, 12]"),
    "filters of rank 3": (
        lambda: dynaconv.dynamic_conv(X, DYNAMIC[0]), ValueError, "filters must have 4 dimensions; got shape [10, 3, 4]",
    ),
    "filters of another length": (
        lambda: dynaconv.dynamic_conv(X, DYNAMIC[:, :9]), ValueError,
        "filters must be [B, T, H, W] with the B, T of x, [2, 10, 12]; got [2, 9, 3, 4]",
    ),
    "heads": (
        lambda: dynaconv.static_conv(X, torch.randn(5, 4)), ValueError,
        "filters must be for a number of heads that divides D; got H = 5, D = 12",
    ),
    "no head": (lambda: dynaconv.static_conv(X, torch.randn(0, 4)), ValueError, "got H = 0, D = 12"),
    "no tap": (lambda: dynaconv.dynamic_conv(X, DYNAMIC[..., :0]), ValueError, "at least one tap (W >= 1); got W = 0"),
    "device": (
        lambda: dynaconv.static_conv(X, STATIC.to("meta")), TypeError, "filters must be on the device of x, cpu; got meta",
    ),
    "padding": (
        lambda: dynaconv.static_conv(X, STATIC, padding=4), ValueError,
        'padding must be "causal", "same" or an integer in 0..3 (W - 1); got 4',
    ),
    "padding of another type": (lambda: dynaconv.static_conv(X, STATIC, padding=True), ValueError, "got True"),
    "normalize": (
        lambda: dynaconv.dynamic_conv(X, DYNAMIC, normalize="l2"), ValueError, "normalize must be None or \"softmax\"; got 'l2'",
    ),
    "filters not a tensor": (lambda: dynaconv.static_conv(X, None), TypeError, "filters must be a floating-point tensor (fp16, bf16, fp32 or fp64); got NoneType"),
    "filters of integers": (lambda: dynaconv.static_conv(X, STATIC.int()), TypeError, "filters must be a floating-point tensor (fp16, bf16, fp32 or fp64); got a tensor of torch.int32"),
    "filters of another batch": (lambda: dynaconv.dynamic_conv(X, DYNAMIC[:1]), ValueError, "[2, 10, 12]; got [1, 10, 3, 4]"),
    "negative padding": (lambda: dynaconv.dynamic_conv(X, DYNAMIC, padding=-1), ValueError, "0..3 (W - 1); got -1"),
    "unknown padding": (lambda: dynaconv.dynamic_conv(X, DYNAMIC, padding="valid"), ValueError, "0..3 (W - 1); got 'valid'"),
    "state not a tensor": (lambda: dynaconv.static_conv(X, STATIC, state=0), TypeError, "state must be a floating-point tensor (fp16, bf16, fp32 or fp64); got int"),
    "state of rank 2": (lambda: dynaconv.static_conv(X, STATIC, state=STATE[0]), ValueError, "state must have 3 dimensions; got shape [3, 12]"),
    "state of another size": (
        lambda: dynaconv.static_conv(X, STATIC, state=STATE[:, 1:]), ValueError, "state must be [M, S, D] = [2, W - 1 = 3 or more, 12]; got [2, 2, 12]",
    ),
    "initial state of another size": (
        lambda: dynaconv.dynamic_conv(X, DYNAMIC, initial_state=torch.zeros(2, 4, 12)), ValueError,
        "initial_state must be [N, W - 1, D] = [2, 3, 12]; got [2, 4, 12]",
    ),
    "state in training": (
        lambda: dynaconv.dynamic_conv(X.clone().requires_grad_(), DYNAMIC, state=STATE), ValueError,
        "state is overwritten in place and carries no gradient",
    ),
    "two states": (
        lambda: dynaconv.dynamic_conv(X, DYNAMIC, state=STATE, initial_state=STATE), ValueError, "either initial_state or state",
    ),
    "state that is not causal": (
        lambda: dynaconv.dynamic_conv(X, DYNAMIC, padding="same", return_final_state=True), ValueError,
        "a state needs padding=\"causal\": it holds the inputs before the first; got 'same'",
    ),
    "codes of another length": (
        lambda: dynaconv.lowrank_conv(X, CODES[:, :9], BASIS), ValueError,
        "codes must be [B, T, R] with the B, T of x, [2, 10, 12]; got [2, 9, 5]",
    ),
    "basis of another rank": (
        lambda: dynaconv.lowrank_conv(X, CODES, BASIS[:4]), ValueError,
        "basis must be [R, D, W] with the R of codes and the D of x, [5, 12, W >= 1]; got [4, 12, 4]",
    ),
    "basis without taps": (lambda: dynaconv.lowrank_conv(X, CODES, BASIS[..., :0]), ValueError, "W >= 1]; got [5, 12, 0]"),
    "basis of rank 2": (lambda: dynaconv.lowrank_conv(X, CODES, BASIS[0]), ValueError, "basis must have 3 dimensions; got shape [12, 4]"),
    "codes of integers": (lambda: dynaconv.lowrank_conv(X, CODES.int(), BASIS), TypeError, "codes must be a floating-point tensor"),
    "static filters of another width": (
        lambda: dynaconv.dynamic_conv(X, DYNAMIC, static=torch.randn(12, 3)), ValueError,
        "static must have as many taps as the other filters, W = 4; got W = 3",
    ),
    "static filters for other heads": (
        lambda: dynaconv.lowrank_conv(X, CODES, BASIS, static=torch.randn(5, 4)), ValueError,
        "static must be for a number of heads that divides D; got H = 5, D = 12",
    ),
    "bias of another size": (lambda: dynaconv.static_conv(X, STATIC, bias=torch.zeros(3)), ValueError, "bias must be [D] = [12]; got [3]"),
    "bias on another device": (
        lambda: dynaconv.static_conv(X, STATIC, bias=torch.zeros(12, device="meta")), TypeError, "bias must be on the device of x, cpu; got meta",
    ),
    "activation": (lambda: dynaconv.static_conv(X, STATIC, activation="relu"), ValueError, "activation must be None or \"silu\"; got 'relu'"),
    "unknown keyword": (lambda: dynaconv.static_conv(X, STATIC, dilation=2), TypeError, "static_conv has no keyword 'dilation'; those of every operator are padding, bias, activation,"),
    "sequences that are no tensor": (lambda: packed([0, 10]), TypeError, "cu_seqlens must be a tensor of int32 or int64; got list"),
    "sequences of floats": (lambda: packed(torch.tensor([0.0, 10.0])), TypeError, "int32 or int64; got torch.float32"),
    "sequences of rank 2": (lambda: packed(torch.tensor([[0, 10]])), ValueError, "cu_seqlens must be [N + 1]; got [1, 2]"),
    "no sequences": (lambda: packed(torch.tensor([], dtype=torch.int32)), ValueError, "cu_seqlens must be [N + 1]; got [0]"),
    "sequences that decrease": (
        lambda: packed(torch.tensor([0, 6, 5, 10])), ValueError, "cu_seqlens must start at 0, not decrease, and end at T = 10; got [0, 6, 5, 10]",
    ),
    "sequences that end early": (lambda: packed(torch.tensor([0, 9])), ValueError, "end at T = 10; got [0, 9]"),
    "sequences that start late": (lambda: packed(torch.tensor([1, 10])), ValueError, "end at T = 10; got [1, 10]"),
    "sequences of no token": (
        lambda: dynaconv.static_conv(X[:1, :0], STATIC, cu_seqlens=torch.tensor([0, 3])), ValueError, "end at T = 0; got [0, 3]",
    ),
    "sequences in two rows": (
        lambda: dynaconv.static_conv(X, STATIC, cu_seqlens=torch.tensor([0, 10])), ValueError, "x must be [1, T, D]; got [2, 10, 12]",
    ),
    "sequences on another device": (
        lambda: packed(torch.tensor([0, 10], device="meta")), TypeError, "cu_seqlens must be on the device of x, cpu; got meta",
    ),
    "a state for every sequence": (
        lambda: packed(torch.tensor([0, 4, 10]), initial_state=STATE[:1]), ValueError, "initial_state must be [N, W - 1, D] = [2, 3, 12]; got [1, 3, 12]",
    ),
    "rows without a state": (lambda: dynaconv.static_conv(X, STATIC, state_indices=torch.tensor([0, 1])), ValueError, "state_indices needs a state"),
    "rows of another number": (lambda: indexed(torch.tensor([0])), ValueError, "state_indices must be [N = 2]; got [1]"),
    "rows of booleans": (lambda: indexed(torch.tensor([True, False])), TypeError, "state_indices must be a tensor of int32 or int64; got torch.bool"),
    "rows beyond the state": (lambda: indexed(torch.tensor([0, 2])), ValueError, "state_indices must be different rows of state, 0..1, or -1; got [0, 2]"),
    "the same row twice": (lambda: indexed(torch.tensor([1, 1])), ValueError, "different rows of state, 0..1, or -1; got [1, 1]"),
    "rows in a list": (lambda: indexed([0, 1]), TypeError, "state_indices must be a tensor of int32 or int64; got list"),
    "an expanded state": (
        lambda: dynaconv.static_conv(X, STATIC, state=STATE[:1].expand(2, -1, -1)), ValueError, "state must not be expanded",
    ),
    "filters in training with a state": (
        lambda: dynaconv.dynamic_conv(X, DYNAMIC.clone().requires_grad_(), state=STATE.clone()), ValueError, "carries no gradient",
    ),
    "scale": (lambda: dynaconv.static_conv(X, STATIC, output_scale="a"), TypeError, "output_scale must be a number, it has no gradient; got str"),
    "scale with a gradient": (
        lambda: dynaconv.static_conv(X, STATIC, output_scale=torch.ones((), requires_grad=True)), TypeError,
        "output_scale must be a number, it has no gradient; got Tensor",
    ),
    "residual": (lambda: dynaconv.static_conv(X, STATIC, residual=X), TypeError, "residual must be True or False; got Tensor"),
    "fp8": (lambda: dynaconv.static_conv(X.to(torch.float8_e4m3fn), STATIC), TypeError, "(fp16, bf16, fp32 or fp64); got a tensor of torch.float8_e4m3fn"),
}  # fmt: skip


def packed(ends, **options):
    return dynaconv.static_conv(X[:1], STATIC, cu_seqlens=ends, **options)


def indexed(rows):
    return dynaconv.static_conv(X, STATIC, state=STATE.clone(), state_indices=rows)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_misuse_is_explained(case, backend):
    call, error, message = CASES[case]
    with dynaconv.backend(backend), pytest.raises(error, match=re.escape(message)):
        call()


def test_backends():
    with (
        pytest.raises(ValueError, match="backend must be one of reference, cpu, triton; got 'gpu'"),
        dynaconv.backend("gpu"),
    ):
        pass
    refused = r'backend\("triton"\) cannot serve this call: it needs the package triton .*; x is on meta'
    with dynaconv.backend("triton"), pytest.raises(ValueError, match=refused):
        dynaconv.static_conv(X.to("meta"), STATIC.to("meta"))
    refused = r'backend\("cpu"\) cannot serve this call: a function transform \(torch.func\) is active'
    with dynaconv.backend("cpu"), pytest.raises(ValueError, match=refused):
        torch.func.vmap(lambda x: dynaconv.static_conv(x, STATIC))(X[None])


def test_a_call_that_fails_leaves_the_state_alone():
    buffer = torch.zeros(2, 3, 12)
    with pytest.raises(ValueError, match="normalize"):
        dynaconv.static_conv(X, STATIC, normalize="l2", state=buffer)
    assert (buffer == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_final_state_is_not_a_view_of_the_input(backend):
    with dynaconv.backend(backend):
        x = X.clone()
        _, state = dynaconv.static_conv(x, STATIC, return_final_state=True)
        dynaconv.static_conv(x[:, :1], STATIC, state=state)
    assert torch.equal(x, X)


@pytest.mark.parametrize("padding", [np.int64(1), np.uint8(1)])
def test_any_integer_is_a_padding(padding):
    expected = dynaconv.static_conv(X, STATIC, padding=1)
    assert torch.equal(dynaconv.static_conv(X, STATIC, padding=padding), expected)
    with pytest.raises(ValueError, match="got 1.0"):
        dynaconv.static_conv(X, STATIC, padding=1.0)


@pytest.mark.parametrize(
    ("width", "error", "message"),
    [(0, ValueError, "width must be at least 1; got 0"), (2.0, TypeError, "width must be an integer; got float"),
     (True, TypeError, "got bool")],
)  # fmt: skip
def test_width_of_a_rollback(width, error, message):
    with pytest.raises(error, match=message):
        dynaconv.rollback(STATE.clone(), 1, width=width)


def nested(tensor, layout=torch.strided):
    return torch.nested.nested_tensor(list(tensor), layout=layout)


def jagged(tensor):
    return nested(tensor, torch.jagged)


@pytest.mark.parametrize(
    "change", [nested, jagged, torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr], ids=lambda f: f.__name__
)
def test_nested_and_sparse_tensors_are_refused(change):
    """By name, for every tensor argument."""
    inputs = {"x": X, "codes": CODES, "basis": BASIS, "static": STATIC, "bias": torch.ones(12), "initial_state": STATE}
    calls = [(dynaconv.lowrank_conv, inputs), (dynaconv.dynamic_conv, {"x": X, "filters": DYNAMIC})]
    calls.append((dynaconv.static_conv, {"x": X, "filters": STATIC, "state": STATE, "state_indices": torch.arange(2)}))
    calls.append((dynaconv.static_conv, {"x": X[:1], "filters": STATIC, "cu_seqlens": torch.tensor([0, 10])}))
    calls.append((dynaconv.rollback, {"state": STATE, "count": 1, "width": 4}))
    calls.append(
        (causal_conv1d_fn, {"x": X, "weight": torch.ones(10, 3), "seq_idx": torch.zeros(2, 12, dtype=torch.int32)})
    )
    changed = set()
    for function, arguments in calls:
        for name, value in arguments.items():
            if isinstance(value, torch.Tensor) and (value.dim() == 2 or change != torch.Tensor.to_sparse_csr):
                try:
                    other = change(value)
                except RuntimeError:  # PyTorch has no such tensor of this shape
                    continue
                with pytest.raises(TypeError, match=f"{name} must be a dense tensor"):
                    function(**arguments | {name: other})
                changed.add(name)
    assert {"static", "filters", "weight"} <= changed
