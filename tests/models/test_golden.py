"""Tiny encoder-decoders that fairseq trained: the same weights give the same logits and beams (see golden/README.md)."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from dynaconv.models import LightConvConfig, LightConvForConditionalGeneration

GOLDEN = Path(__file__).parent.parent / "golden"
VARIANTS = {
    "dyn_post": {"encoder_mixer": "dynamic", "decoder_mixer": "dynamic"},
    "light_pre": {"encoder_mixer": "lightweight", "decoder_mixer": "lightweight", "normalize_before": True},
}
RENAMED = [
    (r"^(encoder|decoder)\.", r"model.\1."), (r"\.embed_tokens\.", ".embeddings.tokens."), (r"coder\.layer_norm\.", "coder.norm."),
    (r"\.linear1\.", ".mixer.in_proj."), (r"\.linear2\.", ".mixer.out_proj."), (r"\.conv\.weight$", ".mixer.conv.weight"),
    (r"\.conv\.weight_linear\.", ".mixer.conv.filter_proj."), (r"\.fc1\.", ".ffn.in_proj."), (r"\.fc2\.", ".ffn.out_proj."),
    (r"\.(layer_norms\.0|conv_layer_norm)\.", ".mixer_norm."), (r"\.(layer_norms\.1|final_layer_norm)\.", ".ffn_norm."),
    (r"\.encoder_attn_layer_norm\.", ".cross_norm."), (r"\.encoder_attn\.", ".cross_attention."),
]  # fmt: skip


@pytest.fixture(params=VARIANTS)
def golden(request):
    with np.load(GOLDEN / f"model_{request.param}.npz") as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    weights = {}
    for name, value in arrays.items():
        if name.startswith("weights/") and "version" not in name and "_float_tensor" not in name:
            key = name.removeprefix("weights/")
            for pattern, replacement in RENAMED:
                key = re.sub(pattern, replacement, key)
            weights[key] = value.squeeze(1) if key.endswith("conv.weight") else value
    shared = {
        "share_embeddings": "decoder",
        "source_vocab_size": len(weights["model.encoder.embeddings.tokens.weight"]),
    }
    config = LightConvConfig(
        vocab_size=len(weights["model.decoder.embeddings.tokens.weight"]), d_model=32, encoder_layers=2, decoder_layers=2,
        encoder_kernel_sizes=[3, 7], decoder_kernel_sizes=[3, 7], encoder_heads=4, decoder_heads=4, encoder_ffn_dim=64,
        decoder_ffn_dim=64, **shared, **VARIANTS[request.param],
    )  # fmt: skip
    model = LightConvForConditionalGeneration(config).eval()
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert missing == ["lm_head.weight"]
    assert unexpected == []
    return model, arrays


@pytest.mark.parametrize("batch", ["main_left", "main_right", "short_right"])
@torch.no_grad()
def test_logits(golden, batch):
    model, arrays = golden
    targets = arrays[f"{batch}/prev_output_tokens"]
    logits = model(arrays[f"{batch}/src_tokens"], decoder_input_ids=targets, use_cache=False).logits
    real = targets != 1
    torch.testing.assert_close(logits[real], arrays[f"{batch}/logits"][real], atol=1e-5, rtol=1e-5)


def test_beam_search(golden):
    """The best of four beams is fairseq's, with fairseq's score, or one with a better score.

    The two stop at different moments: fairseq once there are four hypotheses, transformers once none can become better.
    """
    model, arrays = golden
    output = model.generate(
        arrays["main_left/src_tokens"], num_beams=4, max_new_tokens=60, return_dict_in_generate=True, output_scores=True
    )
    same = 0
    for row, score in enumerate(output.sequences_scores.tolist()):
        expected, expected_score = arrays[f"beam/{row}/tokens"].tolist(), arrays[f"beam/{row}/score"].item()
        if output.sequences[row, 1 : 1 + len(expected)].tolist() == expected:
            assert score == pytest.approx(expected_score, abs=1e-5)
            same += 1
        else:
            assert score > expected_score
    assert same >= 7  # of 8
