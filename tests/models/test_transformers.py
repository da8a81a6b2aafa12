"""What transformers' own tests ask of a model: rotary embeddings, data types, parallel plans, outputs, caches."""

import pytest
import torch

from dynaconv.models import DynaConvForCausalLM

from .support import MODELS, assert_close, differs, llama_of, make, tokens

ROPE = {
    "linear": {"factor": 4.0}, "dynamic": {"factor": 4.0}, "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
    "longrope": {"short_factor": [1.0, 2.0, 3.0, 4.0], "long_factor": [2.0, 4.0, 6.0, 8.0], "factor": 2.0, "original_max_position_embeddings": 16},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16},
}  # fmt: skip


@pytest.mark.parametrize("kind", ROPE)
@torch.no_grad()
def test_rotary_embeddings_of_every_type(kind):
    """Of sequences that are shorter and longer than the model is meant for."""
    options = {"max_position_embeddings": 16, "rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **ROPE[kind]}}  # fmt: skip
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
