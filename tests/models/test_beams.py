"""Beam search: sources whose search is over leave the batch, and what is found is what it would have been."""

import pytest
import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from dynaconv.models import LightConvConfig, LightConvEnsemble, LightConvForConditionalGeneration
from dynaconv.models.huggingface import CACHE
from dynaconv.models.lightconv.generation import BeamCache

SOURCES, BEAMS, PAD, END = 7, 3, 1, 2
LIMITS = torch.tensor([4, 16, 9, 12, 16, 5, 7])


def make(mixer: str, seed: int = 0, **options) -> LightConvForConditionalGeneration:
    torch.manual_seed(seed)
    sizes = {"vocab_size": 40, "d_model": 16, "encoder_heads": 2, "decoder_heads": 2, "encoder_ffn_dim": 32}
    layers = {"encoder_layers": 1, "decoder_layers": 2, "encoder_kernel_sizes": [3], "decoder_kernel_sizes": [3, 5]}
    mixers = {"encoder_mixer": mixer, "decoder_mixer": mixer, "decoder_ffn_dim": 32}
    return LightConvForConditionalGeneration(LightConvConfig(**sizes, **layers, **mixers, **options)).eval()


MODELS = {
    "dynamic": lambda: make("dynamic"),
    "attention": lambda: make("attention"),
    "ensemble": lambda: LightConvEnsemble([make("dynamic"), make("attention", 1)]),
}


class Limits(StoppingCriteria):
    """Ends the hypotheses of a source at its own length."""

    def __call__(self, input_ids, scores, **kwargs):
        return LIMITS.repeat_interleave(len(input_ids) // SOURCES) < input_ids.shape[1]


def search(model, limits=True, **options):
    ids = torch.randint(4, 40, (SOURCES, 6), generator=torch.Generator().manual_seed(1))
    ids[2, 4:] = ids[5, 3:] = PAD
    given = {"num_beams": BEAMS, "max_new_tokens": 16, "return_dict_in_generate": True, **options}
    criteria = StoppingCriteriaList([Limits()] if limits else [])
    torch.manual_seed(2)
    return model.generate(ids, attention_mask=(ids != PAD).long(), stopping_criteria=criteria, **given)


def rows_read(model):
    """The rows of every call of the decoder, as they come."""
    rows: list[int] = []
    first = model.members[0] if isinstance(model, LightConvEnsemble) else model
    first.model.decoder.embeddings.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    return rows


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "options",
    [
        {"early_stopping": True, "limits": False}, {"early_stopping": True, "num_return_sequences": 2},
        {"early_stopping": False, "length_penalty": 0.5}, {"early_stopping": True, "do_sample": True},
        {"no_repeat_ngram_size": 2, "min_new_tokens": 3},
    ],
    ids=["ends", "limits and n-best", "late", "sampling", "processors"],
)  # fmt: skip
def test_sources_leave_when_their_search_is_over(name, options, monkeypatch):
    model = MODELS[name]()
    rows = rows_read(model)
    found = search(model, **options)
    assert rows[0] == SOURCES * BEAMS > rows[-1] > 0
    assert sorted(rows, reverse=True) == rows
    rows.clear()
    monkeypatch.setattr(BeamCache, "finish", lambda *_: None)
    expected = search(model, output_scores=True, **options)
    assert set(rows) == {SOURCES * BEAMS}
    assert found.sequences.equal(expected.sequences)
    torch.testing.assert_close(found.sequences_scores, expected.sequences_scores)
    assert found.scores is None


def test_a_cache_that_is_not_narrowed_is_noticed(monkeypatch):
    """The control: the test above would see the rows of one source go on with the states of another."""
    model = make("dynamic")
    expected = search(model, early_stopping=True)
    keep = BeamCache._keep
    monkeypatch.setattr(BeamCache, "_keep", lambda cache, sources, rows: keep(cache, sources * 0, rows))
    assert not search(model, early_stopping=True).sequences.equal(expected.sequences)


@pytest.mark.parametrize("asked", ["output_hidden_states", "output_attentions"])
def test_what_layers_return_has_every_row(asked):
    model = make("attention")
    if asked == "output_attentions":
        model.set_attn_implementation("eager")
    found = search(model, early_stopping=True, **{asked: True})
    states = found.decoder_hidden_states if asked == "output_hidden_states" else found.cross_attentions
    assert {len(layer) for step in states for layer in step} == {SOURCES * BEAMS}


def test_a_cache_without_some_sources_is_refused():
    model = make("dynamic")
    cache = getattr(search(model, early_stopping=True), CACHE)
    with pytest.raises(ValueError, match="of a beam search that is over, and sources have left it"):
        search(model, **{CACHE: cache})
