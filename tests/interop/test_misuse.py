"""Misuse of a peer's functions is explained in the peer's words."""

import re
import subprocess
import sys

import pytest
import torch
from torch import nn

from dynaconv.interop import causal_conv1d as cc
from dynaconv.interop import conv1d, dynamic_conv1d, fla, inkling2

from .definitions import B, D, T, W

X, WEIGHT, STATE = torch.randn(B, D, T), torch.randn(D, W), torch.randn(B, D, W - 1)
TOKENS, HEADWISE, Z, U = X.transpose(1, 2), torch.randn(B, T, 3, W), torch.randn(B, T, 2), torch.randn(2, W * D)
IDS = torch.zeros(B, T, dtype=torch.int32)
PARAMETERS = {"static_weight": torch.randn(W, D), "weight_proj.weight": torch.randn(3 * W, 5)}
MISUSES = {
    "x of two dimensions": (lambda: cc.causal_conv1d_fn(X[0], WEIGHT), ValueError, "x must be [B, D, T]; got [6, 9]"),
    "x a list": (lambda: cc.causal_conv1d_update([1.0], STATE, WEIGHT), TypeError, "x must be a floating-point tensor; got list"),
    "weight [D, 1, W]": (lambda: cc.causal_conv1d_fn(X, WEIGHT[:, None]), ValueError, "weight must be [D = 6, W]; got [6, 1, 4]"),
    "weight of other channels": (lambda: fla.causal_conv1d(TOKENS, WEIGHT[1:]), ValueError, "weight must be [D = 6, W]; got [5, 4]"),
    "weight elsewhere": (lambda: cc.causal_conv1d_fn(X, WEIGHT.to("meta")), TypeError, "weight must be on the device of x, cpu; got meta"),
    "weight without taps": (lambda: cc.causal_conv1d_fn(X, WEIGHT[:, :0]), ValueError, "at least one tap"),
    "bias": (lambda: cc.causal_conv1d_fn(X, WEIGHT, torch.randn(5)), ValueError, "bias must be [D] = [6]; got [5]"),
    "activation": (lambda: cc.causal_conv1d_fn(X, WEIGHT, activation="relu"), ValueError, "got 'relu'"),
    "initial_states": (
        lambda: cc.causal_conv1d_fn(X, WEIGHT, initial_states=TOKENS[:, :3]), ValueError,
        "initial_states must be [B = 2, D = 6, W-1 = 3]; got [2, 3, 6]",
    ),
    "final_states_out alone": (lambda: cc.causal_conv1d_fn(X, WEIGHT, final_states_out=STATE), ValueError, "final_states_out needs return_final_states=True"),
    "seq_idx of floats": (lambda: cc.causal_conv1d_fn(X, WEIGHT, None, IDS.float()), TypeError, "seq_idx must be an int32 or int64 tensor; got a tensor of torch.float32"),
    "seq_idx of another length": (lambda: cc.causal_conv1d_fn(X, WEIGHT, None, IDS[:, 1:]), ValueError, "seq_idx must be [B = 2, T = 9]; got [2, 8]"),
    "seq_idx with states out": (lambda: cc.causal_conv1d_fn(X, WEIGHT, None, IDS, return_final_states=True), ValueError, "return_final_states must be False with seq_idx"),
    "short state": (lambda: cc.causal_conv1d_update(X, STATE[..., 1:], WEIGHT), ValueError, "conv_state must hold W - 1 = 3 inputs or more; got 2"),
    "state rows": (lambda: cc.causal_conv1d_update(X, STATE[:1], WEIGHT), ValueError, "conv_state must be [M = 2, D = 6, S]; got [1, 6, 3]"),
    "indices": (lambda: cc.causal_conv1d_update(X, STATE, WEIGHT, conv_state_indices=IDS[0]), ValueError, "conv_state_indices must be [B = 2]; got [9]"),
    "cache_seqlens": (lambda: cc.causal_conv1d_update(X, STATE, WEIGHT, cache_seqlens=torch.ones(2)), TypeError, "cache_seqlens must be an int32 or int64 tensor"),
    "the same stream twice": (
        lambda: cc.causal_conv1d_update(X, STATE, WEIGHT, None, None, IDS[:, 0], IDS[:, 0]), ValueError, "conv_state_indices must be different rows of conv_state, 0..1, or -1; got [0, 0]",
    ),
    "a stream beyond the buffer": (
        lambda: cc.causal_conv1d_update(X, STATE, WEIGHT, None, None, IDS[:, 0], torch.tensor([0, 2])), ValueError, "conv_state_indices must be different rows of conv_state, 0..1, or -1; got [0, 2]",
    ),
    "no ends": (lambda: cc.causal_conv1d_varlen_states(X[0], IDS[0, :0], 3), ValueError, "cu_seqlens must be [N+1] with N >= 0; got [0]"),
    "ends": (lambda: cc.causal_conv1d_varlen_states(X[0], torch.tensor([0, 7]), 3), ValueError, "end at most at T = 6; got [0, 7]"),
    "state_len": (lambda: cc.causal_conv1d_varlen_states(X[0], torch.tensor([0, 6]), -1), ValueError, "state_len must be 0 or more; got -1"),
    "causal-conv1d state": (lambda: cc.import_state(STATE[0]), ValueError, "states must be [N, D, S]; got [6, 3]"),
    "fla state": (
        lambda: fla.causal_conv1d(TOKENS, WEIGHT, initial_state=STATE), ValueError, "initial_state must be [N = 2, D = 6, W = 4]; got [2, 6, 3]",
    ),
    "fla residual": (lambda: fla.causal_conv1d(TOKENS, WEIGHT, residual=X), ValueError, "residual must be [B = 2, T = 9, D = 6]; got [2, 6, 9]"),
    "fla residual of another type": (lambda: fla.causal_conv1d(TOKENS, WEIGHT, residual=True), TypeError, "residual must be a floating-point tensor; got bool"),
    "fla context parallelism": (lambda: fla.causal_conv1d(TOKENS, WEIGHT, cp_context=1), ValueError, "cp_context must be None"),
    "fla backend": (lambda: fla.causal_conv1d(TOKENS, WEIGHT, backend="bogus"), ValueError, "backend must be one of 'triton', 'cuda', 'mix', None; got 'bogus'"),
    "fla update of two tokens": (
        lambda: fla.causal_conv1d_update(TOKENS, torch.zeros(B, D, W), weight=WEIGHT), ValueError, "x must be [N, D], [N, 1, D] or [1, N, D], one token of each stream; got [2, 9, 6]",
    ),
    "fla update without a weight": (lambda: fla.causal_conv1d_update(X[..., 0], torch.zeros(B, D, W)), TypeError, "weight must be a floating-point tensor; got NoneType"),
    "fla state of rows with seq_idx": (lambda: fla.causal_conv1d(TOKENS, WEIGHT, output_final_state=True, seq_idx=IDS), ValueError, "output_final_state must be False with seq_idx"),
    "fla packed rows": (lambda: fla.causal_conv1d(TOKENS, WEIGHT, cu_seqlens=torch.tensor([0, T])), ValueError, "x must be [1, T, D]"),
    "fla state without slots": (lambda: fla.import_state(STATE[..., :0]), ValueError, "states must be [N, D, W] with W >= 1; got W = 0"),
    "headwise tokens": (
        lambda: dynamic_conv1d.headwise_dynamic_convolution(TOKENS, HEADWISE[:, 1:]), ValueError, "weight must be [B = 2, T = 9, H, W]; got [2, 8, 3, 4]",
    ),
    "headwise heads": (
        lambda: dynamic_conv1d.headwise_dynamic_convolution(TOKENS, HEADWISE.transpose(2, 3)), ValueError, "weight must be for a number of heads that divides D; got H = 4, D = 6",
    ),
    "static_w": (
        lambda: dynamic_conv1d.headwise_dynamic_convolution(TOKENS, HEADWISE, WEIGHT), ValueError, "static_w must be [W = 4, D = 6]; got [6, 4]",
    ),
    "rank": (lambda: dynamic_conv1d.lowrank_dynamic_convolution(TOKENS, Z, U[:1]), ValueError, "U must be [R = 2, W*D]; got [1, 24]"),
    "columns": (lambda: dynamic_conv1d.lowrank_dynamic_convolution(TOKENS, Z, U[:, 1:]), ValueError, "U must be [R, W * D] with D = 6; got [2, 23]"),
    "z": (lambda: dynamic_conv1d.lowrank_dynamic_convolution(TOKENS, Z[:1], U), ValueError, "z must be [B = 2, T = 9, R]; got [1, 9, 2]"),
    "Inkling2 parameters": (
        lambda: inkling2.dynamic_short_convolution({"weight": U}, TOKENS, TOKENS), ValueError, "parameters must have static_weight and weight_proj.weight; got weight",
    ),
    "Inkling2 input": (
        lambda: inkling2.dynamic_short_convolution(PARAMETERS, TOKENS, TOKENS), ValueError, "weight_proj.weight must be [H*W, C = 6]; got [12, 5]",
    ),
    "Inkling2 projection": (lambda: inkling2.import_projection(U.T, 5), ValueError, "weight must be [H * W, C] with W = 5; got [24, 2]"),
    "not a Conv1d": (lambda: conv1d.import_module(nn.Linear(2, 2)), TypeError, "conv must be an nn.Conv1d; got Linear"),
    "groups": (lambda: conv1d.import_module(nn.Conv1d(D, D, W)), ValueError, "conv must have groups = 6 with in_channels = 6; got 1"),
    "channels": (lambda: conv1d.import_module(nn.Conv1d(D, 2 * D, W, groups=D)), ValueError, "conv must have out_channels = 6 with in_channels = 6; got 12"),
    "stride": (lambda: conv1d.import_module(nn.Conv1d(D, D, W, groups=D, stride=2)), ValueError, "conv must have stride = (1,)"),
    "dilation": (lambda: conv1d.import_module(nn.Conv1d(D, D, W, groups=D, dilation=2)), ValueError, "conv must have dilation = (1,)"),
    "padding mode": (lambda: conv1d.import_module(nn.Conv1d(D, D, W, groups=D, padding=1, padding_mode="circular")), ValueError, "conv must have padding_mode = zeros"),
    "dense weight": (lambda: conv1d.import_filters(torch.randn(D, D, W)), ValueError, "weight must be [D, 1, W]; got [6, 6, 4]"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISUSES)
def test_misuse_is_explained(case):
    call, error, message = MISUSES[case]
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_misuse_leaves_states_alone():
    state = STATE.clone()
    for options in ({"bias": torch.randn(5)}, {"activation": "relu"}, {"conv_state_indices": IDS[0]}):
        with pytest.raises(ValueError, match="must be"):
            cc.causal_conv1d_update(X, state, WEIGHT, **options)
    assert torch.equal(state, STATE)


def test_import_is_light():
    code = (
        "import sys, dynaconv; dynaconv.interop.fla; print([m for m in ('transformers', 'triton') if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
