"""Tiny encoder-decoders that fairseq trained: converted, they give the same numbers (see golden/README.md)."""

import pytest
import torch

from dynaconv.models import LightConvForConditionalGeneration

from .support import VARIANTS, arrays_of, converted

PAD = 1


@pytest.fixture(scope="module", params=VARIANTS)
def golden(request, tmp_path_factory):
    layout = {"dyn_iwslt": "0.6.1"}.get(request.param, "0.12")
    _, folder = converted(tmp_path_factory.mktemp(request.param), request.param, layout, legacy=layout == "0.6.1")
    model = LightConvForConditionalGeneration.from_pretrained(folder).eval()
    arrays = {name: torch.from_numpy(a) for name, a in arrays_of(request.param).items() if name != "flags"}
    return request.param, model, arrays


def batches(arrays):
    return sorted({name.split("/")[0] for name in arrays if name.endswith("/src_tokens")})


@torch.no_grad()
def logits_of(model, arrays, batch):
    targets = arrays[f"{batch}/prev_output_tokens"]
    return model(arrays[f"{batch}/src_tokens"], decoder_input_ids=targets, use_cache=False).logits


def test_logits(golden):
    _, model, arrays = golden
    for batch in batches(arrays):
        real = arrays[f"{batch}/prev_output_tokens"] != PAD
        logits = logits_of(model, arrays, batch)
        torch.testing.assert_close(logits[real], arrays[f"{batch}/logits"][real], atol=1e-5, rtol=1e-5)


def test_losses(golden):
    variant, model, arrays = golden
    for batch in batches(arrays):
        targets = arrays[f"{batch}/target"]
        logp = logits_of(model, arrays, batch).log_softmax(-1)[targets != PAD]
        nll = -logp.gather(-1, targets[targets != PAD][:, None]).sum()
        assert nll.item() == pytest.approx(arrays[f"{batch}/nll_sum"].item(), rel=1e-5)
        # fairseq spread the smoothing over all tokens before 2021, and over all but the right one since.
        tokens = logp.shape[-1]
        share = 0.1 / tokens if variant == "dyn_iwslt" else 0.1 / (tokens - 1)
        kept = 0.9 if variant == "dyn_iwslt" else 0.9 - share
        smoothed = kept * nll - share * logp.sum()
        assert smoothed.item() == pytest.approx(arrays[f"{batch}/label_smoothed_loss_sum"].item(), rel=1e-5)


@torch.no_grad()
def test_token_by_token(golden):
    _, model, arrays = golden
    source, targets = arrays["main_left/src_tokens"], arrays["main_left/prev_output_tokens"]
    mask, cache, steps = (source != PAD).long(), None, []
    encoded = model.get_encoder()(source)
    for token in targets.T:
        output = model(None, mask, token[:, None], encoder_outputs=encoded, cache=cache, use_cache=True)
        cache = output.cache
        steps.append(output.logits)
    real = targets != PAD
    expected = arrays["main_left/logits_incremental"][real]
    torch.testing.assert_close(torch.cat(steps, 1)[real], expected, atol=1e-5, rtol=1e-5)


def search(model, source, beams, length_penalty, **options):
    """Hypotheses and scores of all sentences, best first."""
    output = model.generate(
        source, num_beams=beams, num_return_sequences=beams, length_penalty=length_penalty, output_scores=True,
        output_logits=True, return_dict_in_generate=True, **options,
    )  # fmt: skip
    hypotheses = [[token for token in tokens.tolist() if token != PAD] for tokens in output.sequences[:, 1:]]
    if beams > 1:
        return hypotheses, output.sequences_scores
    steps = model.compute_transition_scores(output.sequences, output.logits, normalize_logits=True)
    own = output.sequences[:, 1:] != PAD
    return hypotheses, steps.where(own, 0).sum(1) / own.sum(1) ** length_penalty


@pytest.mark.parametrize(("beams", "length_penalty"), [(1, 1.0), (4, 1.0), (5, 0.5)])
def test_all_hypotheses(golden, beams, length_penalty):
    _, model, arrays = golden
    for batch in ("main_left", "short_left"):
        found, scores = search(model, arrays[f"{batch}/src_tokens"], beams, length_penalty)
        expected = arrays[f"{batch}/beam{beams}_lenpen{length_penalty}/tokens"].tolist()
        assert found == [[token for token in tokens if token != PAD] for tokens in expected]
        scores_expected = arrays[f"{batch}/beam{beams}_lenpen{length_penalty}/scores"].float()
        torch.testing.assert_close(scores, scores_expected, atol=1e-4, rtol=0)


def test_the_way_of_searching_matters(golden):
    _, model, arrays = golden
    expected = arrays["main_left/beam4_lenpen1.0/tokens"].tolist()
    found, _ = search(model, arrays["main_left/src_tokens"], 4, 1.0, early_stopping=False)
    assert found != [[token for token in tokens if token != PAD] for tokens in expected]
