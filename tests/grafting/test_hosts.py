"""Other causal language models than those of the tests beside this one: each does what it does without a graft."""

import sys
from pathlib import Path

import pytest
import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import graft_hosts

# One of each make: latent attention, gates beside queries, caches with shared, empty, recurrent and sliding layers, fused
# projections of all layouts, decoders that pass no keyword arguments on, layers used twice, renamed checkpoints.
KINDS = [
    "bamba", "bart", "bert", "bloom", "codegen", "deepseek_v3", "exaone", "falcon", "gemma3", "gemma3n_text",
    "gemma4_text", "gpt_bigcode", "granitemoehybrid", "jamba", "lfm2", "llama4_text", "longcat_flash", "minimax",
    "modernbert-decoder", "mpt", "olmo_hybrid", "persimmon", "phi4_multimodal", "qwen3_5_text", "qwen3_next",
    "recurrent_gemma", "zamba2",
]  # fmt: skip
HERE = [kind for kind in KINDS if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]


@pytest.mark.parametrize("placement", ["qkv", "all_linear"])
@pytest.mark.parametrize("kind", HERE)
def test_as_the_plain_model(kind, placement):
    result = graft_hosts.try_type(kind, placement)
    refused = (kind, placement) == ("minimax", "all_linear")  # see dynaconv.grafting.stacks
    assert result.verdict == ("refused" if refused else "served"), result


def test_what_is_wrong_is_found(monkeypatch):
    """The control: states of zeros, masks dropped, beams that keep their places, filters that are lost on saving."""
    from dynaconv.models.huggingface import ConvolvedLayer
    from dynaconv.nn import Stream, StreamStates

    past = StreamStates.past
    with monkeypatch.context() as patch:
        patch.setattr(StreamStates, "past", lambda *arguments: torch.zeros_like(past(*arguments)))
        assert {"decoding", "static cache"} <= graft_hosts.try_type("llama", "qkv").failed.keys()
    with monkeypatch.context() as patch:
        patch.setattr(Stream, "masked", lambda self, x: x)
        assert graft_hosts.try_type("llama", "qkv").failed.keys() == {"left padding"}
    with monkeypatch.context() as patch:
        patch.setattr(
            ConvolvedLayer, "reorder_cache", lambda self, index: super(ConvolvedLayer, self).reorder_cache(index)
        )
        assert graft_hosts.try_type("llama", "all_linear").failed.keys() == {"beams"}


@pytest.mark.sweep
@pytest.mark.parametrize("placement", ["qkv", "all_linear"])
def test_all_types(placement):
    """Minutes; `python benchmarks/graft_hosts.py` writes the table."""
    results = [graft_hosts.try_type(kind, placement) for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]
    assert not [result for result in results if result.verdict == "wrong"]
    assert sum(result.verdict == "served" for result in results) >= 140
    assert all(len(result.reason) > 20 for result in results if result.verdict == "refused")
