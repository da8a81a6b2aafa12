"""The filters of tokens, and their pictures: they are what the convolutions compute by."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import dynaconv
from dynaconv.cli import main
from dynaconv.models import DynaConvConfig, DynaConvForCausalLM, LightConvLMConfig
from dynaconv.models import LightConvForCausalLM as LightConvLM
from dynaconv.nn import DynamicConv, DynamicShortConv, LightConv, ShortConv
from dynaconv.tasks.inspection.filters import find_filters

SIZES = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
IDS = torch.arange(3, 12)[None]
MODULES = {
    "static": lambda: ShortConv(8, 3),
    "low rank": lambda: DynamicShortConv(8, 3, rank=4),
    "head-wise": lambda: DynamicShortConv(8, 3, head_dim=4, static=False),
    "low rank, other condition": lambda: DynamicShortConv(8, 3, rank=4, condition_dim=5),
    "LightConv": lambda: LightConv(8, 5, 2, padding="same"),
    "DynamicConv": lambda: DynamicConv(8, 5, 2, padding="same"),
}


@pytest.mark.parametrize("name", MODULES)
def test_filters_are_those_that_are_computed_by(name):
    module = MODULES[name]()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(2, 7, 8)
    condition = [torch.randn(2, 7, 5)] if "condition" in name else []
    filters = module.filters(x, *condition)
    assert filters.shape[:2] == (2, 7)
    filters = filters.repeat_interleave(8 // filters.shape[2], 2)
    taps = filters.shape[3]
    left = taps // 2 if isinstance(module, (LightConv, DynamicConv)) else taps - 1
    padded = torch.nn.functional.pad(x, (0, 0, left, taps - 1 - left)).unfold(1, taps, 1)
    expected = (filters * padded).sum(-1) + (x if getattr(module, "residual", False) else 0)
    torch.testing.assert_close(module(x, *condition), expected)


def randomised(model):
    for name, parameter in model.named_parameters():
        if "conv" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def dyna(**options):
    return randomised(DynaConvForCausalLM(DynaConvConfig(**SIZES, conv_rank=4, **options)))


MODELS = {
    "q k v": (lambda: dyna(), {"q", "k", "v"}),
    "all linear": (lambda: dyna(placement="all_linear"), {"q", "k", "v", "o", "ffn.gate", "ffn.up", "ffn.down"}),
    "mamba2": (lambda: dyna(mixer="mamba2", placement="mixer", mamba_head_dim=16), {"mixer"}),
    "grafted": (lambda: randomised(dynaconv.graft(LlamaForCausalLM(LlamaConfig(**SIZES)))), {"q", "k", "v"}),
    "DynamicConv": (
        lambda: LightConvLM(
            LightConvLMConfig(vocab_size=50, d_model=32, decoder_layers=2, decoder_kernel_sizes=[3, 5], decoder_heads=2)
        ).eval(),
        {"conv"},
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_convolution_of_a_model(name):
    model, places = MODELS[name][0](), MODELS[name][1]
    found = find_filters(model, IDS)
    assert {one.layer for one in found} == {0, 1}
    names = {one.place for one in found}
    assert len(names) == len(places), names
    assert len(found) == 2 * len(places)
    for one in found:
        assert one.energy.shape == (9, len(one.lags))
        assert one.lags[-1] == 0
        torch.testing.assert_close(one.shares.sum(1), torch.ones(9))
        assert not torch.equal(one.shares[0], one.shares[1])


def test_static_filters_are_those_of_all_tokens():
    assert {len(one.energy) for one in find_filters(dyna(conv="static"), IDS)} == {1}


def test_a_model_without_convolutions_is_refused():
    with pytest.raises(ValueError, match="DynaConvForCausalLM has no convolutions of dynaconv"):
        find_filters(dyna(conv="none"), IDS)


def test_pictures_of_a_translation_model(toy_run, tmp_path, capsys):
    main(["show-filters", str(toy_run), "drei rote Hunde", "<b>", "--output", str(tmp_path / "filters")])
    assert (tmp_path / "filters.png").stat().st_size > 10000
    page = (tmp_path / "filters.html").read_text("utf-8")
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert "http" not in page.replace("https://", "http").replace("<html", "")
    assert "layer 1" in page
    assert "energy of the taps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"), [(("absent", "a"), "no model in absent"), (("RUN", " "), "there is no text")]
)
def test_mistakes(arguments, message, toy_run, capsys):
    with pytest.raises(SystemExit):
        main(["show-filters", *(str(toy_run) if part == "RUN" else part for part in arguments)])
    assert message in capsys.readouterr().err
