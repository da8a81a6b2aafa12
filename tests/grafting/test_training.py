"""Grafted models in training: checkpointing, compilation, the Trainer, the README."""

from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, StaticCache

import dynaconv
from dynaconv.models.huggingface import CACHE

from ..conftest import enable_checkpointing
from .support import assert_close, gradients, grafted, left_padded, tokens, vanilla


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "olmoe"])
def test_activation_checkpointing(family):
    model, ids = grafted(family, "all_linear").train(), tokens()
    mask = left_padded(ids)[1][:, : ids.shape[1]]
    losses = [model(ids, attention_mask=mask, labels=ids, use_cache=False).loss]
    enable_checkpointing(model)
    losses.append(model(ids, attention_mask=mask, labels=ids, use_cache=False).loss)
    model(ids)  # another call before the recomputation
    with torch.no_grad():
        model(tokens(3, 5))
    plain, again = (torch.autograd.grad(loss, model.parameters()) for loss in losses)
    assert all(map(torch.equal, plain, again))


@pytest.mark.parametrize("kind", ["lowrank", "static"])
def test_convolutions_alone_in_a_plain_loop(kind):
    """The first input of a frozen model needs no gradient, but what it was is needed for that of the filters."""
    model, ids = grafted("llama", "all_linear", kind), tokens()
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "short_convs" in name
    results = [list(gradients(model, ids, use_cache=cache).values()) for cache in (True, False)]
    assert len(results[0]) == 2 * (7 if kind == "static" else 2 * 7 + 4)
    assert all(map(torch.equal, *results))


@pytest.mark.slow
def test_compiled():
    model, ids = grafted("llama", "all_linear"), tokens()
    expected = gradients(model, ids)
    compiled = torch.compile(model, fullgraph=True)
    for use_cache in (False, True):
        model.zero_grad()
        compiled(ids, labels=ids, use_cache=use_cache).loss.backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-5)
    length = torch.export.Dim("length", min=2, max=64)
    exported = torch.export.export(
        model, (ids,), {"use_cache": False}, dynamic_shapes={"input_ids": {1: length}, "use_cache": None}
    )
    assert_close(exported.module()(ids[:, :7], use_cache=False).logits, model(ids[:, :7]).logits)
    with torch.no_grad():
        cache = StaticCache(config=model.config, max_cache_len=20)
        pieces = [model(ids[:, :4], **{CACHE: cache}).logits]
        step = torch.compile(model.forward, fullgraph=True)
        pieces += [step(ids[:, t : t + 1], **{CACHE: cache}).logits for t in range(4, 13)]
        assert_close(torch.cat(pieces, 1), model(ids).logits)


@torch.no_grad()
def test_compiled_from_the_first_call_on():
    """Of a model that was never called uncompiled, which would leave what the second compilation looks for."""
    model, ids = dynaconv.graft(vanilla(), rank=2), tokens()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for length in (13, 7):
        assert_close(compiled(ids[:, :length]).logits, vanilla()(ids[:, :length]).logits)


def real_text():
    """Bytes of the licence as rows of 32 tokens below 61."""
    text = (Path(__file__).parents[2] / "LICENSE").read_bytes().lower()
    ids = torch.tensor([3 + (byte - 32) % 58 for byte in text if byte >= 32])
    return ids[: len(ids) // 32 * 32].view(-1, 32)


def train(model, path, steps):
    rows = [{"input_ids": row, "labels": row} for row in real_text()]
    arguments = transformers.TrainingArguments(
        str(path),
        max_steps=steps,
        per_device_train_batch_size=16,
        learning_rate=1e-2,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    transformers.Trainer(model, arguments, train_dataset=rows).train()


def test_the_trainer_trains_convolutions_alone(tmp_path):
    model, ids = vanilla(), real_text()
    train(model, tmp_path, 40)
    model.save_pretrained(tmp_path / "vanilla")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "vanilla").eval()
    frozen, before = model(ids, labels=ids), {name: p.detach().clone() for name, p in model.named_parameters()}
    dynaconv.graft(model)
    assert torch.equal(model(ids).logits, frozen.logits)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "short_convs" in name
    train(model, tmp_path, 30)
    assert model(ids, labels=ids).loss < frozen.loss - 0.05
    after = dict(model.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_example_of_the_readme(tmp_path, monkeypatch):
    readme = Path(__file__).parents[2] / "README.md"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_bytes(readme.read_bytes())
    section = readme.read_text().partition("## In language models")[2]
    variables = {}
    for example in section.split("```python\n")[1:3]:
        exec(
            example.partition("```")[0].replace('"max_steps": 100', '"max_steps": 20').replace("300m", "150m"),
            variables,
        )
    losses = [entry["train_loss"] for entry in variables["trainer"].state.log_history if "train_loss" in entry]
    assert losses[-1] < 5
    assert variables["model"].num_parameters() == 164_346_624
