"""Ensembles: the mean of the probabilities, token by token as at once, and what they refuse."""

import pytest
import torch

from dynaconv.models import LightConvConfig, LightConvEnsemble, LightConvForConditionalGeneration

SIZES = {"encoder_layers": 2, "decoder_layers": 2, "encoder_kernel_sizes": [3, 5], "decoder_kernel_sizes": [3, 5]}


def member(seed: int, **options) -> LightConvForConditionalGeneration:
    torch.manual_seed(seed)
    sizes = SIZES | {"vocab_size": 40, "d_model": 16, "encoder_heads": 2, "decoder_heads": 2} | options
    return LightConvForConditionalGeneration(LightConvConfig(encoder_ffn_dim=32, decoder_ffn_dim=32, **sizes)).eval()


@pytest.fixture(scope="module")
def members():
    attention = {"encoder_mixer": "attention", "decoder_mixer": "attention"}
    return [member(1), member(2, d_model=24, encoder_layers=1, encoder_kernel_sizes=[3]), member(3, **attention)]


SOURCE = torch.tensor([[5, 6, 7, 8, 2], [9, 8, 2, 1, 1]])
MASK = (SOURCE != 1).long()
TARGET = torch.tensor([[2, 9, 4, 7], [2, 5, 5, 6]])


def test_the_mean_of_probabilities(members):
    arguments = {"input_ids": SOURCE, "attention_mask": MASK, "decoder_input_ids": TARGET}
    found = LightConvEnsemble(members)(**arguments).logits
    expected = torch.stack([model(**arguments).logits.softmax(-1) for model in members]).mean(0)
    torch.testing.assert_close(found.exp(), expected)


@pytest.mark.parametrize("options", [{}, {"num_beams": 4, "length_penalty": 0.6}])
def test_searches_with_one_cache_for_each(members, options):
    ensemble = LightConvEnsemble(members)
    options = {
        "max_new_tokens": 12,
        "min_new_tokens": 9,
        "return_dict_in_generate": True,
        "output_scores": True,
        **options,
    }
    cached, anew = (
        ensemble.generate(SOURCE, attention_mask=MASK, use_cache=use_cache, **options) for use_cache in (True, False)
    )
    assert cached.sequences.equal(anew.sequences)
    for a, b in zip(cached.scores, anew.scores):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    alone = members[0].generate(SOURCE, attention_mask=MASK, **options)
    assert not cached.sequences.equal(alone.sequences)


def test_of_equal_members_is_a_member(members):
    options = {"attention_mask": MASK, "num_beams": 3, "min_new_tokens": 9, "max_new_tokens": 12}
    assert LightConvEnsemble([members[0]] * 2).generate(SOURCE, **options).equal(members[0].generate(SOURCE, **options))


def test_other_vocabularies_are_refused(members):
    with pytest.raises(ValueError, match="must have one vocabulary; vocab_size is "):
        LightConvEnsemble([members[0], member(1, vocab_size=41)])
