"""What transformers' own tests ask of a model: rotary embeddings, data types, parallel plans, outputs, caches."""

import pytest
import torch

from .support import assert_close, differs, llama_of, make, tokens

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
