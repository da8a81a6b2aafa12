"""The kernels of Sieberling et al. 2026 against their definition, and their layouts there and back."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import dynaconv
from dynaconv.interop import dynamic_conv1d

from .definitions import B, D, T, W, assert_same, randn


def backward_taps(x: Tensor, taps: Tensor, residual: bool) -> Tensor:
    """The definition of the kernels of 2026: sum_k taps[b, t, d, k] * x[b, t - k, d]."""
    total = x if residual else 0
    for k in range(taps.shape[-1]):
        total = total + taps[..., k] * F.pad(x, (0, 0, k, 0))[:, : x.shape[1]]
    return total


class TestDynamicConv1d:
    @pytest.mark.parametrize("residual", [False, True])
    @pytest.mark.parametrize(("heads", "width"), [(1, 4), (3, 3), (D, 1)])
    def test_headwise(self, backend, heads, width, residual):
        def oracle(x, weight, static_w):
            return backward_taps(x, weight.repeat_interleave(D // heads, 2) + static_w.T, residual)

        assert_same(
            lambda *inputs: dynamic_conv1d.headwise_dynamic_convolution(*inputs, residual),
            oracle,
            randn(B, T, D),
            randn(B, T, heads, width),
            randn(width, D),
        )

    @pytest.mark.parametrize("residual", [False, True])
    @pytest.mark.parametrize(("rank", "width"), [(1, 4), (5, 3)])
    def test_lowrank(self, backend, rank, width, residual):
        def oracle(x, z, U, static_w):
            taps = (z @ U).view(B, T, width, D) + static_w
            return backward_taps(x, taps.transpose(2, 3), residual)

        assert_same(
            lambda *inputs: dynamic_conv1d.lowrank_dynamic_convolution(*inputs, residual),
            oracle,
            randn(B, T, D),
            randn(B, T, rank),
            randn(rank, width * D),
            randn(width, D),
        )

    def test_without_static(self, backend):
        x, weight, z, U = randn(B, T, D), randn(B, T, 3, W), randn(B, T, 2), randn(2, W * D)
        assert_same(
            dynamic_conv1d.headwise_dynamic_convolution,
            lambda x, weight: backward_taps(x, weight.repeat_interleave(2, 2), False),
            x,
            weight,
        )
        assert_same(
            dynamic_conv1d.lowrank_dynamic_convolution,
            lambda x, z, U: backward_taps(x, (z @ U).view(B, T, W, D).transpose(2, 3), False),
            x,
            z,
            U,
        )

    def test_tap_order_matters(self):
        x, weight, static_w, z, U = (torch.randn(s) for s in ((B, T, D), (B, T, 3, W), (W, D), (B, T, 2), (2, W * D)))
        headwise = dynamic_conv1d.headwise_dynamic_convolution(x, weight, static_w)
        assert not torch.allclose(
            headwise, dynaconv.dynamic_conv(x, weight, static=dynamic_conv1d.import_static(static_w)), atol=0.1
        )
        assert not torch.allclose(
            headwise, dynaconv.dynamic_conv(x, dynamic_conv1d.import_filters(weight), static=static_w.T), atol=0.1
        )
        lowrank = dynamic_conv1d.lowrank_dynamic_convolution(x, z, U)
        assert not torch.allclose(lowrank, dynaconv.lowrank_conv(x, z, U.view(2, W, D).transpose(1, 2)), atol=0.1)
        assert not torch.allclose(lowrank, dynaconv.lowrank_conv(x, z, U.view(2, D, W)), atol=0.1)

    def test_layouts(self):
        """One number of each weight, found again at its place."""
        static_w, U = torch.zeros(W, D), torch.zeros(2, W * D)
        static_w[1, 5], U[1, 1 * D + 5] = 1, 1
        assert dynamic_conv1d.import_static(static_w).nonzero().tolist() == [[5, W - 2]]
        assert dynamic_conv1d.import_basis(U, D).nonzero().tolist() == [[1, 5, W - 2]]

    def test_there_and_back(self):
        static_w, U, filters = torch.randn(W, D), torch.randn(2, W * D), torch.randn(B, T, 3, W)
        assert torch.equal(dynamic_conv1d.export_static(dynamic_conv1d.import_static(static_w)), static_w)
        assert torch.equal(dynamic_conv1d.export_basis(dynamic_conv1d.import_basis(U, D)), U)
        assert torch.equal(dynamic_conv1d.export_filters(dynamic_conv1d.import_filters(filters)), filters)
        assert torch.equal(dynamic_conv1d.import_basis(U.T.contiguous().T, D), dynamic_conv1d.import_basis(U, D))
