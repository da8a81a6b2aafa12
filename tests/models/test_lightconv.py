"""The encoder-decoder: decoding, beams, sharing, saving, presets, gradients, and errors."""

import re

import pytest
import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from dynaconv.models import LightConvConfig, LightConvForConditionalGeneration
from dynaconv.models.huggingface import CACHE, ConvStateLayer
from dynaconv.models.lightconv.configuration import PRESETS
from dynaconv.models.lightconv.generation import BeamCache

from ..conftest import enable_checkpointing

MIXERS = ["dynamic", "lightweight", "attention"]
VARIANTS = {
    "post-norm": {}, "pre-norm": {"normalize_before": True}, "no GLU": {"glu": False}, "learned": {"position_embedding": "learned"},
    "untied": {"share_embeddings": "none", "source_vocab_size": 47}, "tied output": {"share_embeddings": "decoder"},
    "wide convolution": {"encoder_conv_dim": 48, "decoder_conv_dim": 64}, "raw filters": {"normalize_filters": False},
}  # fmt: skip


def make_model(seed=0, **options):
    """A tiny model whose weights are large enough that what it decodes depends on its input."""
    torch.manual_seed(seed)
    mixer = options.pop("mixer", "dynamic")
    sizes = {
        "vocab_size": 40, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_kernel_sizes": [3, 4],
        "decoder_kernel_sizes": [3, 31], "encoder_heads": 4, "decoder_heads": 4, "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64, "encoder_mixer": mixer, "decoder_mixer": mixer,
    }  # fmt: skip
    model = LightConvForConditionalGeneration(LightConvConfig(**(sizes | options))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    return model


def make_batch(seed=1, rows=3, source=9, target=8):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 40, (rows, source), generator=generator)
    ids[1, 6:] = 1
    return ids, torch.randint(4, 40, (rows, target), generator=generator)


def decode_in_chunks(model, ids, targets, chunks, **options):
    past, logits, start = None, [], 0
    for size in chunks:
        step = model(
            ids, decoder_input_ids=targets[:, start : start + size], cache=past, use_cache=True,
            **{k: v[:, : start + size] for k, v in options.items()},
        )  # fmt: skip
        past, start = step.cache, start + size
        logits.append(step.logits)
    return torch.cat(logits, 1), past


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_decoding_equals_teacher_forcing(mixer, variant):
    """In fp64: in fp32 the order of the sums makes a difference of 1.6e-5 in some logits."""
    model, (ids, targets) = make_model(mixer=mixer, **VARIANTS[variant]).double(), make_batch()
    whole = model(ids, decoder_input_ids=targets, use_cache=False).logits
    for chunks in ([1] * 8, [3, 1, 4], [8]):
        logits, _ = decode_in_chunks(model, ids, targets, chunks)
        torch.testing.assert_close(logits, whole, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("mixer", MIXERS)
@torch.no_grad()
def test_decoder_prompts_padded_on_the_left(mixer):
    model, (ids, targets) = make_model(mixer=mixer), make_batch()
    mask = torch.ones_like(targets)
    padded, padded_mask = (
        torch.cat([torch.ones_like(targets[:, :3]), targets], 1),
        torch.cat([mask[:, :3] * 0, mask], 1),
    )
    expected = model(ids, decoder_input_ids=targets, use_cache=False).logits
    actual = model(ids, decoder_input_ids=padded, decoder_attention_mask=padded_mask, use_cache=False).logits[:, 3:]
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    chunked, _ = decode_in_chunks(model, ids, padded, [5, 1, 5], decoder_attention_mask=padded_mask)
    torch.testing.assert_close(chunked[:, 3:], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mixer", MIXERS)
@torch.no_grad()
def test_source_padding_does_not_matter(mixer):
    model, (ids, targets) = make_model(mixer=mixer), make_batch()
    alone = model(ids[1:2, :6], decoder_input_ids=targets[1:2], use_cache=False).logits
    left = torch.cat([torch.ones_like(ids[1:2, :4]), ids[1:2, :6]], 1)
    for padded in (ids[1:2], left):
        logits = model(padded, decoder_input_ids=targets[1:2], use_cache=False).logits
        torch.testing.assert_close(logits, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize(
    "options", [{"num_beams": 4, "num_return_sequences": 3, "length_penalty": 0.5}, {"num_beams": 1}]
)
def test_generation_with_the_cache_equals_generation_without(mixer, options):
    for seed in range(3):
        model, (ids, _) = make_model(seed, mixer=mixer), make_batch(seed)
        cached, plain = (
            model.generate(ids, max_new_tokens=15, do_sample=False, use_cache=use, **options) for use in (True, False)
        )
        assert torch.equal(cached, plain)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_several_rows_of_a_source_share_its_keys(implementation, monkeypatch):
    """Beams and samples; where probabilities are returned, each row has its own."""
    monkeypatch.setattr(BeamCache, "finish", lambda *_: None)  # the cache is looked at when all have ended
    model, (ids, _) = make_model(1), make_batch(1)
    model.set_attn_implementation(implementation)
    for options in ({"num_beams": 3}, {"do_sample": True, "num_return_sequences": 3}):
        found = []
        for use_cache in (True, False):
            torch.manual_seed(5)
            found.append(
                model.generate(ids, max_new_tokens=12, use_cache=use_cache, return_dict_in_generate=True, **options)
            )
        assert found[0].sequences.equal(found[1].sequences)
        rows = len(ids) * 3 if implementation == "eager" else len(ids)
        assert len(found[0][CACHE].cross_attention_cache.layers[0].keys) == rows


def test_beam_search_without_reordering_is_noticed(monkeypatch):
    """The control: the tests above would see a cache whose rows stay behind when beams change places."""
    monkeypatch.setattr(ConvStateLayer, "reorder_cache", lambda self, index: None)
    differs = 0
    for seed in range(5):
        model, (ids, _) = make_model(seed), make_batch(seed)
        cached, plain = (model.generate(ids, max_new_tokens=15, num_beams=4, use_cache=use) for use in (True, False))
        differs += not torch.equal(cached, plain)
    assert differs >= 3


def test_sampling_is_seeded():
    model, (ids, _) = make_model(), make_batch()
    samples = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        samples.append(model.generate(ids, max_new_tokens=10, do_sample=True, num_return_sequences=2))
    assert samples[0].shape[0] == 6
    assert torch.equal(samples[0], samples[1])
    assert not torch.equal(samples[0], samples[2])


@torch.no_grad()
def test_state_is_of_fixed_size():
    model, (ids, targets) = make_model(), make_batch()
    _, past = decode_in_chunks(model, ids, targets, [1] * 8)
    layers = past.self_attention_cache.layers
    assert [layer.inputs["conv"].shape[1] for layer in layers] == [2, 30]
    assert past.get_seq_length() == 8
    past.batch_select_indices(torch.tensor([2]))
    assert layers[0].inputs["conv"].shape[0] == 1
    past.self_attention_cache.reset()
    assert past.get_seq_length() == 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_saved_and_loaded(variant, tmp_path):
    model, (ids, targets) = make_model(**VARIANTS[variant]), make_batch()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    assert AutoConfig.from_pretrained(tmp_path).to_dict() == loaded.config.to_dict()
    expected = model(ids, decoder_input_ids=targets, use_cache=False).logits
    assert torch.equal(loaded(ids, decoder_input_ids=targets, use_cache=False).logits, expected)
    names = {id(p) for p in loaded.parameters()}
    assert len(names) == len({id(p) for p in model.parameters()})


def test_missing_weights_are_initialised(tmp_path):
    """transformers leaves a parameter uninitialised if no `_init_weights` near it knows it."""
    from safetensors.torch import load_file, save_file

    make_model(mixer="lightweight").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    missing = [name for name in weights if "conv.weight" in name or "mixer_norm" in name]
    assert missing
    save_file({k: v for k, v in weights.items() if k not in missing}, tmp_path / "model.safetensors", {"format": "pt"})
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    bound = (6 / (3 + 4 * 3)) ** 0.5
    weight = loaded.model.encoder.layers[0].mixer.conv.weight
    assert weight.isfinite().all()
    assert 0 < weight.abs().max() <= bound
    assert (loaded.model.encoder.layers[0].mixer_norm.weight == 1).all()


# Millions of parameters as fairseq counts them, V = 32768 shared; iwslt: 8848 and 6632, nothing shared.
COUNTS = {
    ("lightconv_wmt_en_de_big", "dynamic", True): 213.24, ("lightconv_wmt_en_de_big", "lightweight", True): 208.87,
    ("lightconv_wmt_en_de_big", "dynamic", False): 199.59, ("lightconv_wmt_en_de_big", "lightweight", False): 195.22,
    ("lightconv_wmt_en_de", "dynamic", True): 61.75, ("lightconv_iwslt_de_en", "dynamic", False): 38.69,
    ("lightconv_iwslt_de_en", "lightweight", False): 38.14,
}  # fmt: skip


@pytest.mark.parametrize(("preset", "mixer", "glu"), COUNTS)
def test_presets_have_the_published_size(preset, mixer, glu):
    vocabularies = {"vocab_size": 6632, "source_vocab_size": 8848} if "iwslt" in preset else {}
    config = LightConvConfig.from_preset(preset, encoder_mixer=mixer, decoder_mixer=mixer, glu=glu, **vocabularies)
    with torch.device("meta"):
        model = LightConvForConditionalGeneration(config)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == COUNTS[preset, mixer, glu]


def test_every_preset_builds():
    for preset in PRESETS:
        with torch.device("meta"):
            LightConvForConditionalGeneration(LightConvConfig.from_preset(preset))


@pytest.mark.parametrize("mixer", MIXERS)
def test_every_parameter_gets_a_gradient(mixer):
    model, (ids, targets) = make_model(mixer=mixer, dropout=0.0, input_dropout=0.0).train(), make_batch()
    model(ids, labels=targets).loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert [name for name in without if "k_proj.bias" not in name] == []  # softmax does not see a key bias
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    enable_checkpointing(model)
    model(ids, labels=targets).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])


def test_loss_is_per_token():
    model, (ids, targets) = make_model(), make_batch()
    labels = targets.clone()
    labels[0, 4:] = -100
    output = model(ids, labels=labels)
    nll = torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    torch.testing.assert_close(output.loss, nll)
    torch.testing.assert_close(model(ids, labels=labels, num_items_in_batch=10).loss, nll * 20 / 10)


MISTAKES = {
    "heads": ({"d_model": 30}, "encoder_conv_dim must be divisible by encoder_heads; got encoder_conv_dim = 30, encoder_heads = 4"),
    "kernels": ({"encoder_kernel_sizes": [3, 5, 7]}, "one for each of the 2 encoder_layers; got 3: [3, 5, 7]"),
    "kernel of zero": ({"decoder_kernel_sizes": [0]}, "decoder_kernel_sizes must be at least 1"),
    "mixer": ({"mixer": "conv"}, "encoder_mixer must be one of lightweight, dynamic, attention; got 'conv'"),
    "sharing": ({"source_vocab_size": 9}, 'share_embeddings="all" needs one vocabulary; got source_vocab_size = 9'),
    "dropout": ({"weight_dropout": 1}, "weight_dropout must be at least 0 and below 1; got 1"),
    "positions": ({"position_embedding": "rope"}, "position_embedding must be one of sinusoidal, learned; got 'rope'"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_configurations_that_do_not_fit(mistake):
    options, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=re.escape(message)):
        make_model(**options)


def test_other_mistakes():
    with pytest.raises(ValueError, match="no preset 'lightconv'"):
        LightConvConfig.from_preset("lightconv")
    with pytest.raises(ValueError, match="LightConvConfig has no dropuot"):
        LightConvConfig.from_preset("lightconv_wmt_en_de", dropuot=0.1)
    model, (ids, _) = make_model(position_embedding="learned", max_source_positions=8), make_batch()
    with pytest.raises(ValueError, match="8 learned positions and cannot take 9 tokens"):
        model(ids, decoder_input_ids=ids)
    with pytest.raises(ValueError, match="decoder_input_ids, decoder_inputs_embeds or labels must be given"):
        model(ids)
    with pytest.raises(ValueError, match="cache_implementation='static' is not for convolutional decoders"):
        make_model().generate(ids, cache_implementation="static", max_new_tokens=2)


def test_an_empty_batch():
    model, (ids, targets) = make_model(1, mixer="attention"), make_batch(1)
    logits = model(ids[:0], decoder_input_ids=targets[:0], use_cache=False).logits
    assert logits.shape == (0, targets.shape[1], model.config.vocab_size)
