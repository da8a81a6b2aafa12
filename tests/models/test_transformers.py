"""What transformers' own tests ask of a model: rotary embeddings, data types, parallel plans, outputs, caches."""

import re

import pytest
import torch
from transformers import DynamicCache, EncoderDecoderCache, StaticCache

from dynaconv.models import DynaConvForCausalLM

from .support import MODELS, assert_close, differs, llama_of, make, tokens
from .test_lightconv import MIXERS, make_batch, make_model

ROPE = {
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
    "longrope": {
        "short_factor": [1.0, 2.0, 3.0, 4.0],
        "long_factor": [2.0, 4.0, 6.0, 8.0],
        "factor": 2.0,
        "original_max_position_embeddings": 16,
    },
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16},
}


@pytest.mark.parametrize("kind", ROPE)
@torch.no_grad()
def test_rotary_embeddings_of_every_type(kind):
    """Of sequences that are shorter and longer than the model is meant for."""
    options = {
        "max_position_embeddings": 16,
        "rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **ROPE[kind]},
    }
    model, plain = make("attention", conv="none", **options), make("attention", conv="none")
    assert model.config.head_dim == 8
    llama = llama_of(model, **options)
    for length in (13, 29):
        ids = tokens(length=length)
        assert_close(model(ids).logits, llama(ids).logits)
    assert differs(model(ids).logits, plain(ids).logits)


@pytest.mark.parametrize("name", MODELS)
def test_decay_rates_and_time_steps_stay_in_fp32(name):
    """Of models that are made in half precision, not only of those that are loaded in it."""
    model = DynaConvForCausalLM._from_config(make(name).config, dtype=torch.bfloat16)
    kept = {key.rsplit(".", 1)[-1] for key, p in model.named_parameters() if p.dtype == torch.float32}
    assert kept == ({"A_log", "dt_bias"} if model._is_stateful else set())
    assert kept == set(model._keep_in_fp32_modules_strict)
    model(tokens(), labels=tokens()).loss.backward()
    assert all(p.grad.dtype == p.dtype for p in model.parameters() if p.grad is not None)
    double = DynaConvForCausalLM._from_config(make(name).config, dtype=torch.float64)
    assert {p.dtype for p in double.parameters()} == {torch.float64}


@pytest.mark.parametrize("name", MODELS)
def test_parallel_plans_name_what_there_is(name):
    """Every entry is of something, and experts, most of the parameters, are of both plans."""
    model = make(name)
    parameters = [key for key, _ in model.named_parameters()]
    modules = [key for key, _ in model.named_modules()]
    for plan in (model.tp_plan, model.ep_plan):
        patterns = [re.escape(pattern).replace(r"\*", r"\d+") for pattern in plan]
        assert all(any(re.fullmatch(pattern, key) for key in parameters + modules) for pattern in patterns)
        covered = [
            key for key in parameters if any(re.fullmatch(rf"{pattern}(\.weight)?", key) for pattern in patterns)
        ]
        experts = [key for key in parameters if ".experts." in key]
        assert set(experts) <= set(covered)
        assert len(experts) == (2 * model.config.num_hidden_layers if model.config.ffn == "moe" else 0)
        assert not [key for key in covered if "conv" in key]
    assert bool(model.ep_plan) == (model.config.ffn == "moe")
    assert {"lm_head", "model.embed_tokens"} <= set(model.tp_plan)  # of one matrix: both or neither
    # What sees all channels of a projection gets them all.
    tied = {key: style for key, style in model.tp_plan.items() if key.endswith("_proj") and "experts" not in key}
    whole = {key for key, style in tied.items() if style == "colwise_gather_output"}
    assert {key.rsplit(".", 1)[-1] for key in whole} >= {
        f"{n}_proj" for n in model.config.conv_letters.replace("o", "")
    }
    if model.config.placement in ("all_linear", "ABCD"):
        assert not {"colwise", "rowwise"} & set(tied.values())


@pytest.mark.parametrize("name", ["lightconv", "dynaconv"])
@torch.no_grad()
def test_tuples_instead_of_outputs(name):
    ids, targets = make_batch()
    model, given = (make_model(), {"decoder_input_ids": targets}) if name == "lightconv" else (make("attention"), {})
    expected = model(ids, labels=targets if given else ids, output_hidden_states=True, **given)
    for inner in (model, model.base_model):
        labels = {"labels": targets if given else ids} if inner is model else {}
        as_tuple = inner(ids, output_hidden_states=True, return_dict=False, **given, **labels)
        as_dict = inner(ids, output_hidden_states=True, return_dict=None, **given, **labels)
        assert isinstance(as_tuple, tuple)
        assert len(as_tuple) == len(as_dict.to_tuple())
        torch.testing.assert_close(as_tuple[0], as_dict[0])
    model.config.return_dict = False
    as_tuple = model(ids, labels=targets if given else ids, output_hidden_states=True, **given)
    assert isinstance(as_tuple, tuple)
    torch.testing.assert_close(as_tuple[:2], (expected.loss, expected.logits))


@pytest.mark.parametrize("mixer", MIXERS)
def test_hidden_states_and_attentions_of_an_encoder_decoder(mixer):
    model, (ids, targets) = make_model(mixer=mixer, normalize_before=True).double(), make_batch()
    expected = model(ids, decoder_input_ids=targets)
    expected.logits.square().mean().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.set_attn_implementation("eager")
    output = model(ids, decoder_input_ids=targets, output_hidden_states=True, output_attentions=True)
    assert_close(output.logits, expected.logits)
    assert expected.decoder_hidden_states is None
    assert expected.cross_attentions is None
    for states, length in ((output.encoder_hidden_states, 9), (output.decoder_hidden_states, 8)):
        assert [state.shape for state in states] == [(3, length, 32)] * 3
    torch.testing.assert_close(output.encoder_hidden_states[-1], output.encoder_last_hidden_state)
    torch.testing.assert_close(model.lm_head(output.decoder_hidden_states[-1]), output.logits)
    own = 2 if mixer == "attention" else 0
    sizes = {"encoder_attentions": (own, 9, 9), "decoder_attentions": (own, 8, 8), "cross_attentions": (2, 8, 9)}
    for name, (number, *size) in sizes.items():
        assert [p.shape for p in output[name]] == [(3, 4, *size)] * number
        assert all(torch.allclose(p.sum(-1), torch.ones((), dtype=p.dtype)) for p in output[name])
    assert all((p[1, :, :, 6:] == 0).all() for p in output.cross_attentions)  # padding
    assert all((p.triu(1) == 0).all() for p in output.decoder_attentions)
    output.logits.square().mean().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name])
    encoded = model.get_encoder()(ids, output_hidden_states=True, return_dict=False)
    again = model(None, (ids != 1).long(), targets, encoder_outputs=encoded)
    assert_close(again.logits, output.logits)
    assert len(again.encoder_hidden_states) == 3


@torch.no_grad()
def test_generation_returns_hidden_states_and_attentions():
    model, (ids, _) = make_model(mixer="attention"), make_batch()
    model.set_attn_implementation("eager")
    model.generation_config.eos_token_id = None
    output = model.generate(
        ids,
        max_new_tokens=3,
        do_sample=False,
        return_dict_in_generate=True,
        output_hidden_states=True,
        output_attentions=True,
    )
    assert [[p.shape[2:] for p in step] for step in output.cross_attentions] == [[(1, 9)] * 2] * 3
    assert [[p.shape[2:] for p in step] for step in output.decoder_attentions] == [[(1, n)] * 2 for n in (1, 2, 3)]
    assert len(output.encoder_hidden_states) == len(output.decoder_hidden_states) == 3


@pytest.mark.parametrize("mixer", MIXERS)
@torch.no_grad()
def test_a_cache_of_transformers_serves_an_encoder_decoder(mixer):
    model, (ids, targets) = make_model(mixer=mixer), make_batch()
    cache = EncoderDecoderCache(DynamicCache(config=model.config), DynamicCache(config=model.config))
    whole = model(ids, decoder_input_ids=targets).logits
    first = model(ids, decoder_input_ids=targets[:, :5], cache=cache).logits
    assert_close(torch.cat([first, model(ids, decoder_input_ids=targets[:, 5:], cache=cache).logits], 1), whole)
    with pytest.raises(TypeError, match="must be an EncoderDecoderCache; got DynamicCache"):
        model(ids, decoder_input_ids=targets, cache=DynamicCache())
    static = StaticCache(config=model.config, max_cache_len=12)
    with pytest.raises(ValueError, match="must be of dynamic caches"):
        model(ids, decoder_input_ids=targets, cache=EncoderDecoderCache(static, DynamicCache()))
