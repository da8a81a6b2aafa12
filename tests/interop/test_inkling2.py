"""Inkling2's convolution against the module of Hugging Face transformers."""

import pytest
import torch
from torch import nn

from dynaconv.interop import inkling2

from .definitions import B, D, T, W, assert_same, randn


class TestInkling2:
    HEADS, C = 3, 5

    @pytest.fixture
    def module(self):
        modeling = pytest.importorskip("transformers.models.inkling2.modeling_inkling2")
        module = modeling.Inkling2DynamicShortConvolution(D, self.C, self.HEADS, W, layer_idx=0, conv_idx=0)
        nn.init.normal_(module.static_weight)
        return module

    @pytest.mark.parametrize("as_state_dict", [False, True])
    def test_module(self, backend, module, as_state_dict):
        x, generator, parameters = randn(B, T, D), randn(B, T, self.C), list(module.parameters())
        source = dict(module.state_dict(keep_vars=True)) if as_state_dict else module
        assert_same(
            lambda x, generator, *_: inkling2.dynamic_short_convolution(source, x, generator),
            lambda x, generator, *_: module(x, generator),
            x,
            generator,
            *parameters,
        )

    def test_mask_by_zeroing(self, module):
        x, generator, mask = torch.randn(B, T, D), torch.randn(B, T, self.C), torch.ones(B, T, dtype=torch.bool)
        mask[0, :3] = False
        y = inkling2.dynamic_short_convolution(module, x * mask[..., None], generator)
        torch.testing.assert_close(y[mask], module(x, generator, conv_mask=mask)[mask], rtol=1e-4, atol=1e-5)

    def test_streams(self, backend, module):
        x, generator = torch.randn(B, T, D), torch.randn(B, T, self.C)
        state, pieces = torch.zeros(B, W - 1, D), []
        with torch.no_grad():
            for start, end in ((0, 4), (4, 5), (5, T)):
                pieces.append(
                    inkling2.dynamic_short_convolution(module, x[:, start:end], generator[:, start:end], state=state)
                )
            torch.testing.assert_close(torch.cat(pieces, 1), module(x, generator), rtol=1e-4, atol=1e-5)

    def test_tap_order_matters(self, module):
        x, generator = torch.randn(B, T, D), torch.randn(B, T, self.C)
        expected = module(x, generator)
        for name in ("static_weight", "weight_proj.weight"):
            parameters = dict(module.state_dict())
            flipped = parameters[name].unflatten(0, (-1, W)).flip(1).flatten(0, 1)
            y = inkling2.dynamic_short_convolution({**parameters, name: flipped}, x, generator)
            assert not torch.allclose(y, expected, atol=0.05)

    def test_projection_there_and_back(self):
        weight = torch.randn(self.HEADS * W, self.C)
        ours = inkling2.import_projection(weight, W)
        assert torch.equal(ours[0], weight[W - 1])
        assert torch.equal(inkling2.export_projection(ours, W), weight)
