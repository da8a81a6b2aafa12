"""Bad input: one clear error that names the argument, what came and what was expected, on every implementation."""

import re

import pytest
import torch

import dynaconv

X = torch.randn(2, 10, 12)
DYNAMIC = torch.randn(2, 10, 3, 4)
STATIC = torch.randn(3, 4)
STATE = torch.zeros(2, 3, 12)

CASES = {
    "x not a tensor": (lambda: dynaconv.static_conv([1.0], STATIC), TypeError, "x must be a floating-point tensor; got list"),
    "x of integers": (
        lambda: dynaconv.static_conv(X.long(), STATIC), TypeError, "x must be a floating-point tensor; got a tensor of torch.int64",
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
    "filters not a tensor": (lambda: dynaconv.static_conv(X, None), TypeError, "filters must be a floating-point tensor; got NoneType"),
    "filters of integers": (lambda: dynaconv.static_conv(X, STATIC.int()), TypeError, "filters must be a floating-point tensor; got a tensor of torch.int32"),
    "filters of another batch": (lambda: dynaconv.dynamic_conv(X, DYNAMIC[:1]), ValueError, "[2, 10, 12]; got [1, 10, 3, 4]"),
    "negative padding": (lambda: dynaconv.dynamic_conv(X, DYNAMIC, padding=-1), ValueError, "0..3 (W - 1); got -1"),
    "unknown padding": (lambda: dynaconv.dynamic_conv(X, DYNAMIC, padding="valid"), ValueError, "0..3 (W - 1); got 'valid'"),
    "state not a tensor": (lambda: dynaconv.static_conv(X, STATIC, state=0), TypeError, "state must be a floating-point tensor; got int"),
    "state of rank 2": (lambda: dynaconv.static_conv(X, STATIC, state=STATE[0]), ValueError, "state must have 3 dimensions; got shape [3, 12]"),
    "state of another size": (
        lambda: dynaconv.static_conv(X, STATIC, state=STATE[:, 1:]), ValueError, "state must be [B, W - 1, D] = [2, 3, 12]; got [2, 2, 12]",
    ),
    "initial state of another size": (
        lambda: dynaconv.dynamic_conv(X, DYNAMIC, initial_state=torch.zeros(2, 4, 12)), ValueError,
        "initial_state must be [B, W - 1, D] = [2, 3, 12]; got [2, 4, 12]",
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
}  # fmt: skip


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("case", CASES)
def test_misuse_is_explained(case, backend):
    call, error, message = CASES[case]
    with dynaconv.backend(backend), pytest.raises(error, match=re.escape(message)):
        call()


def test_backends():
    with pytest.raises(ValueError, match="backend must be one of reference, cpu; got 'gpu'"), dynaconv.backend("gpu"):
        pass
    with dynaconv.backend("cpu"), pytest.raises(ValueError, match='backend\\("cpu"\\) needs CPU tensors; x is on meta'):
        dynaconv.static_conv(X.to("meta"), STATIC.to("meta"))
