"""The language model: decoding, adaptive input and softmax, sharing, saving, presets, and errors."""

import re

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM

from dynaconv.models import LightConvForCausalLM, LightConvLMConfig
from dynaconv.models.lightconv.adaptive import AdaptiveEmbedding, AdaptiveSoftmax

from ..conftest import enable_checkpointing

ADAPTIVE = {
    "adaptive_input_cutoffs": [10, 20],
    "adaptive_softmax_cutoffs": [10, 20],
    "adaptive_input_factor": 2,
    "adaptive_softmax_factor": 2,
}
VARIANTS = {
    "untied": {}, "tied": {"tie_word_embeddings": True}, "learned": {"position_embedding": "learned"},
    "adaptive": ADAPTIVE, "adaptive tied": {**ADAPTIVE, "tie_word_embeddings": True},
    "projections tied": {**ADAPTIVE, "tie_word_embeddings": True, "tie_projections": True},
    "adaptive input": {"adaptive_input_cutoffs": [7]}, "adaptive softmax": {"adaptive_softmax_cutoffs": [7]},
}  # fmt: skip
IDS = torch.randint(4, 40, (3, 9), generator=torch.Generator().manual_seed(1))


def make_model(**options):
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 40,
        "d_model": 32,
        "decoder_layers": 2,
        "decoder_kernel_sizes": [3, 31],
        "decoder_heads": 4,
        "decoder_ffn_dim": 64,
    }
    return LightConvForCausalLM(LightConvLMConfig(**{**sizes, **options})).eval()


@torch.no_grad()
def test_assisted_generation():
    """The assistant's states are taken back where its tokens are refused."""
    model, assistant = make_model(vocab_size=50), make_model(vocab_size=50, decoder_layers=1, decoder_kernel_sizes=[3])
    ids = IDS[:1]
    expected = model.generate(ids, max_new_tokens=12, do_sample=False)
    assert torch.equal(model.generate(ids, max_new_tokens=12, do_sample=False, assistant_model=assistant), expected)


@pytest.mark.parametrize("mixer", ["dynamic", "lightweight", "attention"])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_pieces_give_the_numbers_of_the_whole(variant, mixer):
    model = make_model(decoder_mixer=mixer, **VARIANTS[variant])
    whole = model(IDS, use_cache=False).logits
    assert whole.shape == (3, 9, 40)
    cache, pieces = None, []
    for piece in IDS.split([4, 1, 3, 1], dim=1):
        output = model(piece, cache=cache)
        cache = output.cache
        pieces.append(output.logits)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-5, atol=2e-5)
    changed = IDS.clone()
    changed[:, 5] = 5 + changed[:, 5] % 7
    torch.testing.assert_close(model(changed).logits[:, :5], whole[:, :5], rtol=1e-5, atol=2e-5)
    assert (model(changed).logits[:, 5:] - whole[:, 5:]).abs().max() > 1e-3


@pytest.mark.parametrize("mixer", ["dynamic", "attention"])
@torch.no_grad()
def test_padding_on_the_left(mixer):
    model = make_model(decoder_mixer=mixer, **ADAPTIVE)
    padded = nn.functional.pad(IDS, (4, 0), value=1)
    logits = model(padded, attention_mask=(padded != 1).long()).logits[:, 4:]
    torch.testing.assert_close(logits, model(IDS).logits, rtol=1e-5, atol=2e-5)
    assert (model(padded).logits[:, 4:] - logits).abs().max() > 1e-3


@pytest.mark.parametrize("mixer", ["dynamic", "lightweight", "attention"])
@torch.no_grad()
def test_padding_behind_tokens_is_skipped_when_they_are_gone_on_with(mixer):
    model = make_model(decoder_mixer=mixer)
    row = torch.cat([IDS[:, :5], torch.full((3, 2), 1), IDS[:, 5:]], 1)
    mask = (row != 1).long()
    whole = model(IDS).logits
    for cut in (5, 6, 7):
        first = model(row[:, :cut], attention_mask=mask[:, :cut])
        rest = model(row[:, cut:], attention_mask=mask, cache=first.cache)
        found = torch.cat([first.logits, rest.logits], 1)[mask.bool()].view_as(whole)
        torch.testing.assert_close(found, whole, rtol=1e-5, atol=2e-5)


def test_adaptive_softmax_is_that_of_torch():
    ours = AdaptiveSoftmax(40, 32, [10, 20], 2, 0.0)
    theirs = nn.AdaptiveLogSoftmaxWithLoss(32, 40, [10, 20], div_value=2)
    weights = {"head.weight": torch.cat([ours.head.weight, ours.choice.weight])}
    for i, (projection, tail) in enumerate(zip(ours.projections, ours.tails)):
        weights |= {f"tail.{i}.0.weight": projection.weight.T, f"tail.{i}.1.weight": tail.weight}
    theirs.load_state_dict(weights)
    x, labels = torch.randn(50, 32), torch.arange(50) % 40
    torch.testing.assert_close(ours(x), theirs.log_prob(x))
    torch.testing.assert_close(ours(x).exp().sum(-1), torch.ones(50))
    torch.testing.assert_close(ours.loss(x, labels), 50 * theirs(x, labels).loss)
    labels[10:] = -100
    torch.testing.assert_close(ours.loss(x, labels), 10 * theirs(x[:10], labels[:10]).loss)


def test_adaptive_input():
    module = AdaptiveEmbedding(40, 32, [10, 20], 2, 1)
    assert [words.weight.shape for words in module.words] == [(10, 32), (10, 16), (20, 8)]
    ids = torch.tensor([[0, 9, 10], [39, 19, 20]])
    expected = [(0, 0), (0, 9), (1, 0), (2, 19), (1, 9), (2, 0)]
    rows = torch.stack([module.projections[band](module.words[band].weight[i]) for band, i in expected])
    torch.testing.assert_close(module(ids), rows.view(2, 3, 32))


@pytest.mark.parametrize("variant", VARIANTS)
def test_saved_loaded_and_trained(tmp_path, variant):
    model = make_model(**VARIANTS[variant])
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is LightConvForCausalLM
    hidden = AutoModel.from_pretrained(tmp_path)(IDS).last_hidden_state
    torch.testing.assert_close(loaded.lm_head(hidden), model(IDS).logits)
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    assert len(list(loaded.parameters())) == len(list(model.parameters()))
    loaded.train()
    enable_checkpointing(loaded)
    loaded(IDS, labels=IDS).loss.backward()
    assert [name for name, parameter in loaded.named_parameters() if parameter.grad is None] == []


def test_what_is_tied_is_one():
    names = {variant: {name for name, _ in make_model(**VARIANTS[variant]).named_parameters()} for variant in VARIANTS}
    assert names["untied"] - names["tied"] == {"lm_head.weight"}
    assert names["adaptive"] - names["adaptive tied"] == {
        "lm_head.head.weight",
        "lm_head.tails.0.weight",
        "lm_head.tails.1.weight",
    }
    assert names["adaptive tied"] - names["projections tied"] == {
        "lm_head.projections.0.weight",
        "lm_head.projections.1.weight",
    }


def test_presets():
    with torch.device("meta"):
        model = LightConvForCausalLM(LightConvLMConfig.from_preset("one_billion_word"))
    assert model.num_parameters() == 339_130_368  # 0.34 billion in the paper
    assert len(model.model.layers) == 17
    with torch.device("meta"):
        assert LightConvForCausalLM(LightConvLMConfig.from_preset("lightconv_lm_gbw")).config.decoder_heads == 16


WRONG = [
    ({"adaptive_input_cutoffs": [20, 10]}, "adaptive_input_cutoffs must rise, below vocab_size; got [20, 10], 40"),
    ({"adaptive_softmax_cutoffs": [40]}, "adaptive_softmax_cutoffs must rise, below vocab_size; got [40], 40"),
    ({"adaptive_softmax_cutoffs": [10], "adaptive_softmax_factor": float("nan")}, "adaptive_softmax_factor must be at least 1"),
    ({"adaptive_softmax_cutoffs": [10], "adaptive_softmax_factor": 33}, "leave a dimension to the last of 2 bands of d_model 32; got 33"),
    ({"adaptive_input_cutoffs": [10], "tie_word_embeddings": True}, "tie_word_embeddings needs the same cutoffs and factor"),
    ({**ADAPTIVE, "tie_projections": True}, "tie_projections needs tie_word_embeddings"),
    ({"position_embedding": "rotary"}, "position_embedding must be one of sinusoidal, learned; got 'rotary'"),
    ({"decoder_heads": 5}, "decoder_conv_dim must be divisible by decoder_heads"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_configurations_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make_model(**options)


def test_wrong_calls():
    model = make_model(**ADAPTIVE)
    with pytest.raises(ValueError, match="give either input_ids or inputs_embeds"):
        model()
    with pytest.raises(TypeError, match="has no argument colour"):
        model(IDS, colour="red")
    with pytest.raises(ValueError, match="resize_token_embeddings is not for adaptive input or softmax"):
        model.resize_token_embeddings(50)
    assert make_model(tie_word_embeddings=True).resize_token_embeddings(50).num_embeddings == 50
