"""Encoders, encoder-decoders, backbones alone, and language models behind other modalities."""

import pytest
import torch
import transformers
from transformers import AutoConfig

import dynaconv
from dynaconv.models.huggingface import CACHE

from .support import differs, tokens

SIZES = {
    "vocab_size": 61, "hidden_size": 32, "d_model": 32, "dim": 32, "intermediate_size": 48, "hidden_dim": 48,
    "d_ff": 48, "d_kv": 8, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "num_hidden_layers": 2, "n_layers": 2,
    "num_layers": 2, "encoder_layers": 2, "decoder_layers": 2, "num_attention_heads": 4, "n_heads": 4, "num_heads": 4,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 64, "dropout_rate": 0.0, "dropout": 0.0, "attention_dropout": 0.0,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.2, "init_std": 0.2,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "cls_token_id": 1,
    "sep_token_id": 2, "tie_word_embeddings": False, "forced_eos_token_id": None,
}  # fmt: skip
ENCODERS = {"BertForMaskedLM": "bert", "ModernBertForMaskedLM": "modernbert", "DistilBertForMaskedLM": "distilbert",
            "BertModel": "bert"}  # fmt: skip
ENCODER_DECODERS = {"T5ForConditionalGeneration": "t5", "BartForConditionalGeneration": "bart"}


def make(name, kind, **sizes):
    fields = AutoConfig.for_model(kind).to_dict()
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{name: size for name, size in SIZES.items() if name in fields}, **sizes)
    model = getattr(transformers, name)(config).eval()
    if model.can_generate():
        model.generation_config.update(eos_token_id=None, decoder_start_token_id=1)
    return model


def randomise(model):
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "short_convs" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def assert_close(actual, expected):
    """To the rounding of the largest numbers: all these are of one scale."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def paddings(model):
    convs = {name: m for name, m in model.named_modules() if isinstance(m, dynaconv.nn.DynamicShortConv)}
    return {("decoder" in name, conv.padding) for name, conv in convs.items()}


@pytest.mark.parametrize("placement", ["qkv", "all_linear"])
@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_encoders(name, placement, tmp_path):
    """Their convolutions are centred, and see nothing of the padding on the right."""
    model, ids = make(name, ENCODERS[name]), tokens()
    before = model(ids)[0]
    dynaconv.graft(model, placement, rank=2)
    assert torch.equal(model(ids)[0], before)
    assert paddings(model) == {(False, "same")}
    whole = randomise(model)(ids)[0]
    assert differs(whole, before)
    mask = torch.nn.functional.pad(torch.ones_like(ids), (0, 3))
    padded = torch.nn.functional.pad(ids, (0, 3), value=5)
    assert_close(model(padded, attention_mask=mask)[0][:, :13], whole)
    model.save_pretrained(tmp_path)
    assert_close(dynaconv.from_pretrained(tmp_path).eval()(ids)[0], whole)
    assert torch.equal(dynaconv.ungraft(model)(ids)[0], before)


@torch.no_grad()
def test_a_centred_convolution_sees_the_next_token():
    """Of one layer's projection alone, where attention cannot hide it."""
    model, ids = randomise(dynaconv.graft(make("BertModel", "bert"), "q", rank=2)), tokens()
    seen = {}
    query = model.encoder.layer[0].attention.self.query
    query.register_forward_hook(lambda module, inputs, output: seen.setdefault(len(seen), output))
    other = ids.clone()
    other[:, 6] = 5
    model(ids), model(other)
    changed = (seen[0] != seen[1]).any(-1).any(0)
    assert changed.nonzero()[:, 0].tolist() == [4, 5, 6, 7]  # W = 4, one token before and two behind


@pytest.mark.parametrize("name", ENCODER_DECODERS)
@torch.no_grad()
def test_encoder_decoders(name, tmp_path):
    """Centred in the encoder, causal with a state in the decoder, none where one attends to the other."""
    model, ids, target = make(name, ENCODER_DECODERS[name]), tokens(), tokens(2, 7, seed=2)
    before = model(ids, decoder_input_ids=target).logits
    dynaconv.graft(model, rank=2)
    assert torch.equal(model(ids, decoder_input_ids=target).logits, before)
    assert paddings(model) == {(False, "same"), (True, "causal")}
    assert not any("encoder_attn" in key or "EncDec" in key for key in model.state_dict() if "short_convs" in key)
    whole = randomise(model)(ids, decoder_input_ids=target).logits
    assert differs(whole, before)
    mask = torch.nn.functional.pad(torch.ones_like(ids), (0, 3))
    padded = torch.nn.functional.pad(ids, (0, 3))
    assert_close(model(padded, attention_mask=mask, decoder_input_ids=target).logits, whole)
    for beams in (1, 3):
        options = {"max_new_tokens": 8, "num_beams": beams, "do_sample": False}
        cached, uncached = (model.generate(ids, use_cache=use, **options) for use in (True, False))
        assert torch.equal(cached, uncached)
    model.save_pretrained(tmp_path)
    again = dynaconv.from_pretrained(tmp_path).eval()
    assert_close(again(ids, decoder_input_ids=target).logits, whole)


@torch.no_grad()
def test_an_encoder_that_takes_no_tokens_is_left_alone():
    """Of speech, beside a decoder; a model that is nothing else is refused."""
    sizes = {"num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 32}
    model, sound, target = make("WhisperForConditionalGeneration", "whisper", **sizes), torch.randn(2, 8, 40), tokens()
    before = model(sound, decoder_input_ids=target).logits
    dynaconv.graft(model, rank=2)
    assert torch.equal(model(sound, decoder_input_ids=target).logits, before)
    assert paddings(model) == {(True, "causal")}
    whole, cache = randomise(model)(sound, decoder_input_ids=target).logits, None
    assert differs(whole, before)
    pieces = []
    for t in range(13):
        output = model(sound, decoder_input_ids=target[:, t : t + 1], use_cache=True, **{CACHE: cache})
        pieces, cache = [*pieces, output.logits], output[CACHE]
    assert_close(torch.cat(pieces, 1), whole)
    with pytest.raises(ValueError, match="must take tokens, input_ids or inputs_embeds; ViTModel takes pixel_values"):
        dynaconv.graft(make("ViTModel", "vit"))


@pytest.mark.parametrize(("name", "kind"), [
    ("LongformerModel", "longformer"), ("FSMTModel", "fsmt"), ("LEDModel", "led"), ("PegasusXModel", "pegasus_x"),
    ("CanineModel", "canine"),
])  # fmt: skip
def test_encoders_of_another_layout_are_refused(name, kind):
    with pytest.raises(ValueError, match=f"cannot have short convolutions, {name}: "):
        dynaconv.graft(make(name, kind))


@torch.no_grad()
def test_a_backbone_alone(tmp_path):
    """Say, an embedding model made of a decoder."""
    model, ids = make("LlamaModel", "llama"), tokens()
    before = model(ids)[0]
    dynaconv.graft(model, rank=2)
    assert torch.equal(model(ids)[0], before)
    assert paddings(model) == {(False, "causal")}
    whole = randomise(model)(ids)[0]
    mask = torch.ones_like(ids)
    mask[:, :3] = 0
    assert differs(model(ids, attention_mask=mask)[0][:, 3:], whole[:, 3:])
    model.save_pretrained(tmp_path)
    assert_close(dynaconv.from_pretrained(tmp_path).eval()(ids)[0], whole)
    assert torch.equal(dynaconv.ungraft(model)(ids)[0], before)
