"""Tiny language models of fairseq: converted, they give the same log-probabilities (see golden/README.md)."""

import json
import re

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dynaconv.cli import main
from dynaconv.conversion.fairseq.convert import convert
from dynaconv.models import LightConvForCausalLM
from dynaconv.tasks.language_modelling.perplexity import predict

from .support import GOLDEN, in_layout, save

VARIANTS = ("light_tied", "dyn_untied", "dyn_adaptive_tied", "light_adaptive_untied")


def contents_of(variant):
    with np.load(GOLDEN / f"lm_{variant}.npz") as file:
        arrays = {name: file[name] for name in file.files}
    flags = {"arch": "lightconv_lm", **json.loads(str(arrays.pop("flags")))}
    arrays = {name: torch.from_numpy(array) for name, array in arrays.items()}
    weights = {name.removeprefix("weights/"): tensor for name, tensor in arrays.items() if name.startswith("weights/")}
    return flags, weights, arrays


def checkpoint_of(folder, variant, layout="0.12", change=None, **changed):
    flags, weights, _ = contents_of(variant)
    weights = weights if change is None else change(weights)
    folder.mkdir()
    (folder / "dict.txt").write_text("".join(f"w{i:02d} {99 - i}\n" for i in range(56)))
    return save(folder / "model.pt", {**flags, **changed}, in_layout(weights, layout), layout)


@pytest.fixture(params=VARIANTS)
def golden(request, tmp_path):
    _, _, arrays = contents_of(request.param)
    convert(checkpoint_of(tmp_path / "fairseq", request.param), tmp_path / "ours")
    return AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval(), arrays


@torch.no_grad()
def test_log_probabilities(golden):
    model, arrays = golden
    real = arrays["target"] != 1
    labels = arrays["target"].masked_fill(~real, -100)
    output = model(arrays["tokens"], shift_labels=labels, use_cache=False)
    torch.testing.assert_close(output.logits.log_softmax(-1)[real], arrays["log_probs"][real], atol=1e-5, rtol=1e-5)
    expected = -arrays["log_probs"][real].gather(-1, labels[real][:, None]).mean()
    torch.testing.assert_close(output.loss, expected, rtol=1e-5, atol=0)


def test_perplexity_is_that_of_fairseq(golden):
    """Of whole sequences; padding behind them is no token."""
    model, arrays = golden
    real = arrays["target"] != 1
    rows = [
        [int(tokens[0]), *targets[mask].tolist()]
        for tokens, targets, mask in zip(arrays["tokens"], arrays["target"], real, strict=True)
    ]
    expected = -arrays["log_probs"][real].gather(-1, arrays["target"][real][:, None]).double().sum().item()
    found = predict(model, rows, window=64, max_tokens=20)
    assert found.tokens == int(real.sum())
    assert found.nats == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
def test_token_by_token_and_in_pieces(golden):
    model, arrays = golden
    for length in (1, 5):
        cache, steps = None, []
        for tokens in arrays["tokens"].split(length, dim=1):
            output = model(tokens, cache=cache)
            cache = output.cache
            steps.append(output.logits.log_softmax(-1))
        real = arrays["tokens"] != 1
        torch.testing.assert_close(torch.cat(steps, 1)[real], arrays["log_probs"][real], atol=1e-5, rtol=1e-5)


def test_generation(golden):
    model, arrays = golden
    prompt = arrays["tokens"][:, :4]
    for options in ({}, {"num_beams": 3}):
        options |= {"max_new_tokens": 8, "do_sample": False}
        found = model.generate(prompt, **options)
        assert torch.equal(found, model.generate(prompt, use_cache=False, **options))
        padded = torch.nn.functional.pad(prompt, (3, 0), value=1)
        left = model.generate(padded, attention_mask=(padded != 1).long(), **options)
        assert torch.equal(left[:, 3:], found)


def test_the_loss_trains_every_weight(golden):
    model, arrays = golden
    labels = arrays["tokens"].clone()
    labels[0, 3:] = -100
    expected = model(arrays["tokens"], labels=labels)
    model.train()
    for module in model.modules():
        for name in ("dropout", "input_dropout", "weight_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    loss = model(arrays["tokens"], labels=labels).loss
    torch.testing.assert_close(loss, expected.loss)
    log_probs = expected.logits.log_softmax(-1)[:, :-1]
    kept = labels[:, 1:] != -100
    torch.testing.assert_close(loss, -log_probs[kept].gather(-1, labels[:, 1:][kept][:, None]).mean())
    loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_other_layouts(tmp_path, variant):
    expected = convert(checkpoint_of(tmp_path / "a", variant), tmp_path / "expected").model
    for layout in ("0.6.1", "0.9", "main"):
        model = convert(checkpoint_of(tmp_path / layout, variant, layout), tmp_path / f"ours-{layout}").model
        assert all(map(torch.equal, model.state_dict().values(), expected.state_dict().values()))


def test_words_tied_but_not_projections(tmp_path):
    def untie(weights):
        return {
            name: 2 * t.T.contiguous() if re.fullmatch(r".*tail\.\d\.0\.weight", name) else t
            for name, t in weights.items()
        }

    variant = "dyn_adaptive_tied"
    tied = convert(checkpoint_of(tmp_path / "a", variant), tmp_path / "tied").model
    path = checkpoint_of(tmp_path / "b", variant, change=untie, tie_adaptive_proj=False)
    model = convert(path, tmp_path / "ours").model
    assert model.lm_head.tails[0].weight is model.model.embeddings.tokens.words[1].weight
    assert torch.equal(model.lm_head.projections[0].weight, 2 * tied.lm_head.projections[0].weight)
    reloaded = LightConvForCausalLM.from_pretrained(tmp_path / "ours")
    assert all(map(torch.equal, reloaded.state_dict().values(), model.state_dict().values()))


def test_tokenizer(tmp_path):
    convert(checkpoint_of(tmp_path / "fairseq", "dyn_untied"), tmp_path / "ours")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert tokenizer("w00 w55 x")["input_ids"] == [2, 4, 59, 3]
    assert tokenizer.decode([2, 4, 59, 2], skip_special_tokens=True) == "w00 w55"


WRONG = [
    ({"adaptive_softmax_cutoff": "20,30"}, "tie_word_embeddings needs the same cutoffs and factor"),
    ({"adaptive_softmax_cutoff": "20;40"}, "option adaptive_softmax_cutoff of the checkpoint must be numbers; got '20;40'"),
    ({"adaptive_input_cutoff": "30,20", "adaptive_softmax_cutoff": "30,20"}, "adaptive_input_cutoffs must rise, below vocab_size"),
    ({"adaptive_input_cutoff": "20,60", "adaptive_softmax_cutoff": "20,60"}, "adaptive_input_cutoffs must rise, below vocab_size"),
    ({"adaptive_input_cutoff": "21,40", "adaptive_softmax_cutoff": "21,40"}, "must have the shape [21, 32]"),
    ({"adaptive_input_factor": 1e308, "adaptive_softmax_factor": 1e308}, "adaptive_input_factor must be at least 1"),
    ({"adaptive_input_factor": 64, "adaptive_softmax_factor": 64}, "adaptive_input_factor must be at least 1 and leave a dimension"),
    ({"character_embeddings": True}, "our models have no character_embeddings"),
    ({"decoder_layers": 3}, "the decoder must have 3 layers as the options say; the checkpoint has 2"),
    ({"arch": "lightconv", "source_lang": "xx", "target_lang": "yy"}, "there is no dictionary dict.xx.txt"),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "message"), WRONG, ids=[message for _, message in WRONG])
def test_contradictions_are_refused(tmp_path, flags, message):
    path = checkpoint_of(tmp_path / "fairseq", "dyn_adaptive_tied", **flags)
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
        convert(path, tmp_path / "ours")
    assert [entry.name for entry in tmp_path.iterdir()] == ["fairseq"]


def test_matrices_that_differ_are_not_tied(tmp_path):
    def change(weights):
        return {**weights, "decoder.adaptive_softmax.tail.0.2.weight": torch.zeros(20, 16)}

    with pytest.raises(
        ValueError, match=re.escape("tail.0.2.weight and decoder.embed_tokens.embeddings.1.0.weight must be equal")
    ):
        convert(checkpoint_of(tmp_path / "fairseq", "dyn_adaptive_tied", change=change), tmp_path / "ours")


def test_a_language_model_does_not_translate(tmp_path, capsys):
    convert(checkpoint_of(tmp_path / "fairseq", "light_tied"), tmp_path / "ours")
    (tmp_path / "text.txt").write_text("a b\n")
    for command in ("translate", "summarize", "score"):
        with pytest.raises(SystemExit) as ended:
            main([command, str(tmp_path / "ours"), str(tmp_path / "text.txt")])
        assert ended.value.code == 2
        assert f"the model in {tmp_path / 'ours'} is a language model" in capsys.readouterr().err
