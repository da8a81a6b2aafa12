"""Grafted models in what is built on transformers; its imports take seconds, and are made by the tests that need them."""

import copy
import math
import pickle
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, pipeline

import dynaconv
from dynaconv.grafting import modules
from dynaconv.models.huggingface import Sequences

from ..conftest import run_on_two_processes
from .support import assert_close, differs, grafted, tokens, vanilla
from .two_processes import train

# peft 0.21 and TRL 1.16 use names that transformers 5.24 has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing` is deprecated:FutureWarning")


def adapt(model, targets, **options):
    """With LoRA whose updates are random; those of a new adapter are zero."""
    import peft

    torch.manual_seed(4)
    config = peft.LoraConfig(
        r=4, target_modules=targets, init_lora_weights=False, task_type=peft.TaskType.CAUSAL_LM, **options
    )
    return peft.get_peft_model(model, config)


@pytest.mark.parametrize("trained", [None, ["self_attn_qkv"]], ids=["frozen", "trained"])
def test_lora_trained_saved_loaded_merged(tmp_path, trained):
    """On projections without a convolution; convolutions are frozen, or trained and saved with the adapter."""
    import peft

    ids = tokens()
    grafted().save_pretrained(tmp_path / "model")
    adapted = adapt(dynaconv.from_pretrained(tmp_path / "model"), ["o_proj", "down_proj"], modules_to_save=trained)
    learning = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    train(adapted, torch.optim.SGD(learning, lr=0.5), [ids, tokens(seed=5)])
    expected = adapted.eval()(ids).logits
    adapted.save_pretrained(tmp_path / "adapter")
    base = dynaconv.from_pretrained(tmp_path / "model").eval()
    convs = base.model.layers[0].short_convs.state_dict()
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert_close(loaded(ids).logits, expected)
    with loaded.disable_adapter():
        assert_close(loaded(ids).logits, grafted()(ids).logits)
        assert differs(loaded(ids).logits, expected)
    generated = loaded.generate(input_ids=ids, max_new_tokens=6, do_sample=False)
    loaded.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = dynaconv.from_pretrained(tmp_path / "merged").eval()
    assert_close(merged(ids).logits, expected)
    assert torch.equal(merged.generate(ids, max_new_tokens=6, do_sample=False), generated)
    after = merged.model.layers[0].short_convs.state_dict()
    assert all(torch.equal(convs[name], after[name]) == (trained is None) for name in convs)
    assert differs(dynaconv.ungraft(merged)(ids).logits, expected)


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_lora_on_a_convolved_projection_is_convolved_too(family, tmp_path):
    """So that merging it changes nothing, nor an adapter that begins with a part of the weights."""
    import peft

    target = {"llama": "v_proj", "gpt2": "c_attn", "phi3": "qkv_proj"}[family]
    model, ids = grafted(family), tokens()
    before = model(ids).logits
    adapted = adapt(model, [target], fan_in_fan_out=family == "gpt2").eval()
    logits = adapted(ids).logits
    assert differs(logits, before)
    expected = grafted(family)
    for layer, with_lora in zip(expected.base_model.layers if family != "gpt2" else expected.transformer.h,
                                model.base_model.layers if family != "gpt2" else model.transformer.h):  # fmt: skip
        linear, lora = (
            next(m for name, m in one.named_modules() if name.endswith(target)) for one in (layer, with_lora)
        )
        update = lora.get_delta_weight("default")
        linear.weight.data += update
    assert_close(logits, expected(ids).logits)
    with adapted.disable_adapter():
        assert_close(adapted(ids).logits, before)
    adapted.save_pretrained(tmp_path)
    assert_close(peft.PeftModel.from_pretrained(grafted(family), tmp_path).eval()(ids).logits, logits)
    generated = adapted.generate(input_ids=ids, max_new_tokens=5, do_sample=False)
    merged = adapted.merge_and_unload()
    assert_close(merged(ids).logits, logits)
    assert torch.equal(merged.generate(input_ids=ids, max_new_tokens=5, do_sample=False), generated)
    assert_close(adapt(grafted(family), [target], fan_in_fan_out=family == "gpt2").unload()(ids).logits, before)
    merged = dynaconv.ungraft(merged)
    assert not [module for module in merged.modules() if isinstance(module, modules.Grafted)]
    assert differs(merged(ids).logits, logits)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_adapters_that_begin_with_a_part_of_the_weights(start):
    import peft

    model, ids = grafted(), tokens()
    before = model(ids).logits
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=start)
    )
    torch.testing.assert_close(adapted.eval()(ids).logits, before, rtol=1e-4, atol=1e-4)  # a decomposition in fp32


class Slotted:
    """As the abstract class that is a base of quanto's layers: their class cannot be changed."""

    __slots__ = ()


class WithDict(Slotted):
    pass


class Halved(WithDict, torch.nn.Module):
    """As a quantized layer."""

    def __init__(self, linear):
        super().__init__()
        self.register_buffer("weight", linear.weight.detach().bfloat16())

    def forward(self, x):
        return torch.nn.functional.linear(x, self.weight.to(x.dtype))


@pytest.mark.parametrize("placement", ["qkv", "all_linear"])
def test_layers_that_a_quantizer_puts_in_the_place_of_linear_ones_are_convolved(placement):
    model, ids = grafted(placement=placement), tokens()
    expected, plain = model(ids).logits, vanilla()(ids).logits
    paths = [
        name for name, m in model.model.named_modules() if isinstance(m, torch.nn.Linear) and "short_convs" not in name
    ]
    for path in paths:
        model.model.set_submodule(path, Halved(model.model.get_submodule(path)))
    assert not [m for m in model.model.layers.modules() if type(m) is torch.nn.Linear]
    torch.testing.assert_close(model(ids).logits, expected, rtol=0.05, atol=0.05)
    assert (model(ids).logits - expected).abs().max() < (plain - expected).abs().max() / 10
    halved = model(ids).logits
    assert any(m._forward_hooks for m in model.modules() if isinstance(m, Halved))  # their class stays
    assert torch.equal(copy.deepcopy(model)(ids).logits, halved)
    assert torch.equal(pickle.loads(pickle.dumps(model))(ids).logits, halved)
    assert differs(dynaconv.ungraft(model)(ids).logits, halved)
    assert not any(module._forward_hooks or hasattr(module, "graft_site") for module in model.modules())


def test_lora_before_the_graft_has_to_be_merged():
    ids, adapted = tokens(), adapt(vanilla(), ["v_proj"]).eval()
    expected = adapted(ids).logits
    with pytest.raises(TypeError, match="before adapters of PEFT are put around it; got PeftModelForCausalLM"):
        dynaconv.graft(adapted)
    with pytest.raises(ValueError, match="has adapters of PEFT inside: graft before .* merge_and_unload"):
        dynaconv.graft(adapted.get_base_model())
    merged = adapted.merge_and_unload()
    logits = merged(ids).logits
    assert_close(logits, expected)
    assert torch.equal(dynaconv.graft(merged)(ids).logits, logits)


@pytest.fixture
def tokenizer():
    """A word for every token of the tiny models."""
    words = ["<pad>", "<s>", "</s>", *(f"w{token}" for token in range(3, 61))]
    backend = Tokenizer(models.WordLevel({word: token for token, word in enumerate(words)}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, padding_side="left", **names)


def test_pipeline(tokenizer, tmp_path):
    """Texts alone and in a padded batch."""
    model, rows = grafted(), [tokens(1), tokens(1, 5, seed=3)]
    texts = [tokenizer.decode(row[0]) for row in rows]

    def continuations():
        new = [model.generate(row, max_new_tokens=8, do_sample=False)[0, row.shape[1] :] for row in rows]
        return [tokenizer.decode(row, skip_special_tokens=True) for row in new]

    expected = continuations()
    model.save_pretrained(tmp_path)
    for size, source in ((1, model), (2, model), (2, str(tmp_path))):
        pipe = pipeline("text-generation", model=source, tokenizer=tokenizer, device="cpu")
        results = pipe(texts, batch_size=size, max_new_tokens=8, do_sample=False, return_full_text=False)
        assert [result["generated_text"] for [result] in results] == expected
    dynaconv.ungraft(model)
    assert not set(continuations()) & set(expected)


@pytest.mark.slow
def test_sft_trainer_with_packing(tmp_path, tokenizer, monkeypatch):
    """The loss of packed texts is that of every text alone."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model, texts = grafted(), [tokenizer.decode(tokens(1, length)[0]) for length in (5, 9, 3, 7, 11, 4)]
    config = SFTConfig(
        str(tmp_path),
        packing=True,
        max_length=20,
        per_device_train_batch_size=2,
        max_steps=2,
        learning_rate=1e-2,
        report_to=[],
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        disable_tqdm=True,
    )
    data = Dataset.from_dict({"text": texts})
    trainer = SFTTrainer(model, config, train_dataset=data, processing_class=tokenizer)
    convs = {name: p.detach().clone() for name, p in model.named_parameters() if "short_convs" in name}
    trainer.train()
    assert all(differs(model.get_parameter(name), before) for name, before in convs.items())
    batches = list(trainer.get_train_dataloader())
    pieces = [pieces_of(batch) for batch in batches]
    assert sorted(len(piece) for own in pieces for piece in own) == [4, 5, 6, 8, 10, 12]  # each with its end

    def losses():
        return torch.stack([trainer.compute_loss(model, dict(batch)) for batch in batches])

    alone = [
        sum(model(piece[None], labels=piece[None]).loss * (len(piece) - 1) for piece in own)
        / sum(len(piece) - 1 for piece in own)
        for own in pieces
    ]
    assert_close(losses(), torch.stack(alone))
    # Attention alone keeps the texts apart.
    monkeypatch.setattr(modules, "find_sequences", lambda shape, *arguments: Sequences(shape))
    assert differs(losses(), torch.stack(alone))


def pieces_of(batch):
    starts = [*(batch["position_ids"][0] == 0).nonzero()[:, 0].tolist(), batch["input_ids"].shape[1]]
    return [batch["input_ids"][0, start:end] for start, end in zip(starts, starts[1:])]


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["sft", "dpo"])
def test_trainers_that_load_by_a_path(tmp_path, tokenizer, trainer):
    """The reference of a preference is the model itself before it is trained: the first loss is log 2."""
    import trl
    from datasets import Dataset

    model = grafted()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    kind, config, columns = {
        "sft": (trl.SFTTrainer, trl.SFTConfig, {"text": ["w5 w6 w7 w8"] * 4}),
        "dpo": (
            trl.DPOTrainer,
            trl.DPOConfig,
            {"prompt": ["w5 w6"] * 4, "chosen": [" w7"] * 4, "rejected": [" w8"] * 4},
        ),
    }[trainer]
    options = config(
        str(tmp_path / "out"), max_steps=1, learning_rate=0.0, report_to=[], use_cpu=True, bf16=False, save_strategy="no",
        logging_steps=1, disable_tqdm=True, gradient_checkpointing=False,
    )  # fmt: skip
    made = kind(
        str(tmp_path / "model"), args=options, train_dataset=Dataset.from_dict(columns), processing_class=tokenizer
    )
    assert_close(made.model.eval()(tokens()).logits, model(tokens()).logits)
    made.train()
    if trainer == "dpo":
        assert made.state.log_history[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
        assert any("short_convs" in name for name, _ in made.ref_model.named_parameters())


@pytest.mark.slow
def test_accelerate_and_fsdp_on_two_processes(tmp_path):
    """Two processes with a half of every batch each, against one."""
    model, rows = grafted().train(), tokens(12)
    model.save_pretrained(tmp_path / "model")
    torch.save(rows, tmp_path / "rows.pt")
    run_on_two_processes(Path(__file__).with_name("two_processes.py"), cwd=tmp_path)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train(model, torch.optim.SGD(model.parameters(), lr=0.5), rows.split(4))
    expected = model.state_dict()
    assert all(differs(expected[name], before[name]) for name in expected)
    for actual in (dynaconv.from_pretrained(tmp_path / "accelerate").state_dict(), torch.load(tmp_path / "fsdp2.pt")):
        assert actual.keys() == expected.keys()
        for name, tensor in expected.items():
            # Gradients of the halves are added in another order: 1.2e-7 apart where it is most.
            torch.testing.assert_close(actual[name], tensor, rtol=1e-6, atol=1e-6)
