"""Short convolutions in Hugging Face models: exactness, caches, padding, packing, training, saving, errors."""

import copy
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, DynamicCache, StaticCache
from transformers.cache_utils import LinearAttentionLayer

import dynaconv
from dynaconv.grafting.modules import LayerCall
from dynaconv.nn import Stream, StreamStates

SIZES = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "initializer_range": 0.1,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
FAMILIES = {
    "llama": {}, "qwen3": {}, "gemma3_text": {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "olmoe": EXPERTS, "mixtral": EXPERTS, "qwen3_moe": EXPERTS, "phi3": {}, "gpt_neox": {},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0},
}  # fmt: skip
FUSED = {"gpt_neox", "gpt2", "phi3"}


def vanilla(family="llama", **options):
    torch.manual_seed(0)
    sizes = {} if family == "gpt2" else SIZES
    common = {
        name: SIZES[name]
        for name in ("vocab_size", "initializer_range", "pad_token_id", "bos_token_id", "eos_token_id")
    }
    config = AutoConfig.for_model(family, **(sizes | common | FAMILIES.get(family, {}) | options))
    return AutoModelForCausalLM.from_config(config).eval()


def tokens(batch=2, length=13, seed=1):
    return torch.randint(3, 61, (batch, length), generator=torch.Generator().manual_seed(seed))


def grafted(family="llama", placement="qkv", kind="lowrank", **options):
    """With large random convolutions, after a few steps of training."""
    model = dynaconv.graft(vanilla(family, **options), placement, kind, rank=3, head_dim=8, init="paper")
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if "short_convs" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for seed in range(3):
        with torch.enable_grad():
            model(tokens(seed=seed), labels=tokens(seed=seed)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def differs(actual, expected):
    return (actual - expected).abs().max() > 1e-3


def in_chunks(model, ids, chunk, cache=None, start=4, **keywords):
    cache = cache if cache is not None else DynamicCache(config=model.config)
    pieces, begin = [], 0
    while begin < ids.shape[1]:
        end = min(ids.shape[1], begin + (chunk if begin else start))
        mask = keywords["attention_mask"][:, :end] if "attention_mask" in keywords else None
        pieces.append(model(ids[:, begin:end], attention_mask=mask, past_key_values=cache, use_cache=True).logits)
        begin = end
    return torch.cat(pieces, 1)


@pytest.mark.parametrize("placement", ["qkv", "v", "all_linear"])
@pytest.mark.parametrize("kind", ["lowrank", "headwise", "static"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_identity_until_trained(family, kind, placement):
    model, ids = vanilla(family), tokens()
    before, keys = model(ids), set(model.state_dict())
    assert dynaconv.graft(model, placement, kind, head_dim=8) is model
    assert torch.equal(model(ids).logits, before.logits)
    assert keys < set(model.state_dict())
    assert all("short_convs" in key for key in set(model.state_dict()) - keys)
    assert model.load_state_dict(vanilla(family).state_dict(), strict=False).unexpected_keys == []
    for name, parameter in model.named_parameters():
        if "short_convs" in name:
            torch.nn.init.normal_(parameter)
    assert differs(model(ids).logits, before.logits)
    assert torch.equal(dynaconv.ungraft(model)(ids).logits, before.logits)
    assert set(model.state_dict()) == keys
    assert not hasattr(model.config, "dynaconv")
    assert type(model) is type(vanilla(family))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_where_the_convolutions_are(family):
    """The outputs of the projections of one letter change, and of no other."""
    seen = {}
    for letter in "qkv":
        model = vanilla(family)
        name = {"gpt2": "attn.c_attn", "gpt_neox": "attention.query_key_value", "phi3": "self_attn.qkv_proj"}.get(
            family
        )
        names = [name] * 3 if name else [f"self_attn.{other}_proj" for other in "qkv"]
        layer = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))[0]
        projections = [layer.get_submodule(path) for path in dict.fromkeys(names)]
        x = torch.randn(2, 13, 32)
        before = torch.cat([projection(x) for projection in projections], -1)
        dynaconv.graft(model, letter, "static", init="paper")
        layer.graft_slot.call = LayerCall(layer.short_convs, Stream(), x.shape[:2])
        changed = (torch.cat([projection(x) for projection in projections], -1) != before).any(0).any(0)
        seen[letter] = changed
        sizes = [32, 32, 32] if family in ("gpt2", "gpt_neox") else [32, 16, 16]
        assert changed.sum() == sizes["qkv".index(letter)]
    assert torch.stack(list(seen.values())).sum(0).eq(1).all()
    if family == "gpt_neox":  # of every head q, k, v
        assert seen["k"].unflatten(0, (4, 3, 8)).all(-1).tolist() == [[False, True, False]] * 4
    else:
        assert seen["q"][:32].all()


@pytest.mark.parametrize("placement", ["qkv", "all_linear"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_decoding_equals_the_whole(family, placement, monkeypatch):
    model, ids = grafted(family, placement), tokens()
    whole = model(ids).logits
    for chunk in (1, 2, 5):
        assert_close(in_chunks(model, ids, chunk), whole)
    assert_close(in_chunks(model, ids, 2, DynamicCache()), whole)
    past = StreamStates.past
    monkeypatch.setattr(StreamStates, "past", lambda *arguments: torch.zeros_like(past(*arguments)))
    assert differs(in_chunks(model, ids, 2), whole)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_static_cache(family):
    model, ids = grafted(family), tokens()
    whole = model(ids).logits
    for chunk in (1, 5):
        assert_close(in_chunks(model, ids, chunk, StaticCache(config=model.config, max_cache_len=20)), whole)
    expected = model.generate(ids, max_new_tokens=6, do_sample=False)
    assert torch.equal(model.generate(ids, max_new_tokens=6, do_sample=False, cache_implementation="static"), expected)


def left_padded(ids, padding=3):
    padded = torch.cat([torch.full((len(ids), padding), 5), ids], 1)
    mask = torch.ones_like(padded)
    mask[:, :padding] = 0
    padded[1] = torch.cat([ids[1], ids[1, :padding]])
    mask[1] = 1
    return padded, mask


@pytest.mark.parametrize("placement", ["qkv", "all_linear"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_left_padding(family, placement, monkeypatch):
    model, ids = grafted(family, placement), tokens()
    padded, mask = left_padded(ids)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    whole = model(ids[:1]).logits
    assert_close(model(padded, attention_mask=mask, position_ids=positions).logits[:1, 3:], whole)
    if family == "llama":  # positions are relative: decoding needs none
        for chunk in (1, 2, 5):
            assert_close(in_chunks(model, padded, chunk, attention_mask=mask)[:1, 3:], whole)
    expected = model.generate(ids[:1], max_new_tokens=6, do_sample=False)[:, ids.shape[1] :]
    for cache in (None, "static"):
        actual = model.generate(
            padded, attention_mask=mask, max_new_tokens=6, do_sample=False, cache_implementation=cache
        )
        new = actual[:1, padded.shape[1] :][:, : expected.shape[1]]
        assert torch.equal(new, expected)
    monkeypatch.setattr(Stream, "masked", lambda self, x: x)
    assert differs(model(padded, attention_mask=mask, position_ids=positions).logits[:1, 3:], whole)


@pytest.mark.parametrize("placement", ["qkv", "all_linear"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_sequences(family, placement):
    model, ids = grafted(family, placement), tokens(1, 14)
    ends = [0, 1, 6, 14]
    pieces = [ids[:, start:end] for start, end in zip(ends, ends[1:])]
    positions = torch.cat([torch.arange(piece.shape[1]) for piece in pieces])[None]
    separate = torch.cat([model(piece, use_cache=False).logits for piece in pieces], 1)
    packed = model(ids, position_ids=positions, use_cache=False).logits
    assert_close(packed, separate)
    rows = model(torch.cat([ids, ids.flip(1)]), position_ids=torch.cat([positions, positions]), use_cache=False).logits
    assert_close(rows[:1], separate)
    assert differs(model(ids, use_cache=False).logits, separate)
    if family == "llama":
        gradients = [torch.autograd.grad(y.square().sum(), model.parameters()) for y in (separate, packed)]
        for expected, actual in zip(*gradients):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


GENERATION = {
    "greedy": {"do_sample": False}, "beam": {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
    "sampling": {"do_sample": True, "top_k": 5, "num_return_sequences": 2},
}  # fmt: skip


@pytest.mark.parametrize("way", GENERATION)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_generation_equals_that_without_a_cache(family, way):
    model, ids = grafted(family, "all_linear"), tokens()
    model.generation_config.eos_token_id = None
    results = []
    for cache in (True, False):
        torch.manual_seed(3)
        results.append(model.generate(ids, max_new_tokens=7, use_cache=cache, **GENERATION[way]))
    assert torch.equal(*results)


@torch.no_grad()
def test_beam_search_reorders_states(monkeypatch):
    """Over several models, since one may not be sensitive; without the reordering they differ."""
    from dynaconv.models.cache import ConvolvedLayer

    def outputs(model, cache):
        return [model.generate(tokens(seed=seed), max_new_tokens=12, num_beams=4, do_sample=False, use_cache=cache) for seed in range(6)]  # fmt: skip

    model = grafted()
    expected = outputs(model, False)
    assert all(map(torch.equal, outputs(model, True), expected))
    monkeypatch.setattr(
        ConvolvedLayer, "reorder_cache", lambda self, index: super(ConvolvedLayer, self).reorder_cache(index)
    )
    assert not all(map(torch.equal, outputs(model, True), expected))


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
@torch.no_grad()
def test_assisted_and_continued_generation(family):
    model, assistant, ids = grafted(family, "all_linear"), grafted(family), tokens(1)
    expected = model.generate(ids, max_new_tokens=12, do_sample=False)
    assert torch.equal(model.generate(ids, max_new_tokens=12, do_sample=False, assistant_model=assistant), expected)
    assert torch.equal(model.generate(ids, max_new_tokens=12, do_sample=False, prompt_lookup_num_tokens=3), expected)
    first = model.generate(ids, max_new_tokens=5, do_sample=False, return_dict_in_generate=True)
    turn = torch.cat([first.sequences, tokens(1, 4, seed=9)], 1)
    continued = model.generate(turn, max_new_tokens=5, do_sample=False, past_key_values=first.past_key_values)
    assert torch.equal(continued, model.generate(turn, max_new_tokens=5, do_sample=False))


def gradients(model, ids, **keywords):
    model.zero_grad()
    model(ids, labels=ids, **keywords).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "olmoe"])
def test_activation_checkpointing(family):
    model, ids = grafted(family, "all_linear").train(), tokens()
    mask = left_padded(ids)[1][:, : ids.shape[1]]
    losses = [model(ids, attention_mask=mask, labels=ids, use_cache=False).loss]
    model.gradient_checkpointing_enable()
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


@torch.no_grad()
def test_threads_do_not_share_a_call():
    model, inputs = grafted("llama", "all_linear"), [tokens(seed=seed) for seed in range(4)]
    expected = [model(ids).logits for ids in inputs]
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda ids: [model(ids).logits for _ in range(10)], inputs))
    for logits, again in zip(expected, results):
        assert all(torch.equal(logits, other) for other in again)


@torch.no_grad()
def test_positional_arguments_are_seen():
    model, ids = grafted(), tokens()
    mask = left_padded(ids)[1][:, :13]
    expected = model.model(ids, attention_mask=mask).last_hidden_state
    assert torch.equal(model.model(ids, mask).last_hidden_state, expected)
    assert differs(model.model(ids).last_hidden_state, expected)


@torch.no_grad()
def test_layers_without_attention_stay_as_they_are():
    sizes = {"layer_types": ["linear_attention", "full_attention"], "num_experts": 4, "num_experts_per_tok": 2}
    model, ids = vanilla("qwen3_next", **sizes, shared_expert_intermediate_size=16, moe_intermediate_size=16), tokens()
    before = model(ids).logits
    with pytest.raises(ValueError, match="layout that is not known"):  # q_proj makes a gate too
        dynaconv.graft(model, "q")
    dynaconv.graft(model, "kv", rank=3)
    assert torch.equal(model(ids).logits, before)
    for name, parameter in model.named_parameters():
        if "short_convs" in name:
            assert "layers.1." in name
            torch.nn.init.normal_(parameter, std=0.2)
    whole = model(ids).logits
    assert differs(whole, before)
    assert_close(in_chunks(model, ids, 2), whole)


@torch.no_grad()
def test_caches_can_be_pickled_and_recorded_from_the_start():
    model, ids = grafted("gemma3_text"), tokens()
    cache = DynamicCache(config=model.config)
    cache.activate_past_recording()  # the layer with a sliding window remembers it for both
    model(ids[:, :8], past_key_values=cache)
    cache.crop(-3)
    cache = pickle.loads(pickle.dumps(cache))
    assert_close(model(ids[:, 5:], past_key_values=cache).logits, model(ids).logits[:, 5:])
    expected = model.generate(ids[:1], max_new_tokens=5, do_sample=False)
    assert torch.equal(model.generate(ids[:1], max_new_tokens=5, do_sample=False, assistant_early_exit=1), expected)
    assert model.config.num_hidden_layers == 2


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
    exported = torch.export.export(model, (ids,), {"use_cache": False}, dynamic_shapes={"input_ids": {1: length}, "use_cache": None})  # fmt: skip
    assert_close(exported.module()(ids[:, :7], use_cache=False).logits, model(ids[:, :7]).logits)
    with torch.no_grad():
        cache = StaticCache(config=model.config, max_cache_len=20)
        pieces = [model(ids[:, :4], past_key_values=cache).logits]
        step = torch.compile(model.forward, fullgraph=True)
        pieces += [step(ids[:, t : t + 1], past_key_values=cache).logits for t in range(4, 13)]
        assert_close(torch.cat(pieces, 1), model(ids).logits)


def test_saved_and_loaded_in_a_new_process(tmp_path):
    families = ("llama", "qwen3", "gemma3_text", "olmoe", "mixtral")
    torch.save(tokens(), tmp_path / "ids.pt")
    for family in families:
        grafted(family, "all_linear").save_pretrained(tmp_path / family)
    code = (
        "import sys, torch, dynaconv\nids = torch.load('ids.pt')\n"
        "torch.save([dynaconv.from_pretrained(name).eval()(ids).logits for name in sys.argv[1:]], 'logits.pt')"
    )
    subprocess.run([sys.executable, "-c", code, *families], check=True, cwd=tmp_path)
    for family, logits in zip(families, torch.load(tmp_path / "logits.pt")):
        model = grafted(family, "all_linear")
        assert torch.equal(logits, model(tokens()).logits)
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / family).eval()
        assert torch.equal(plain(tokens()).logits, dynaconv.ungraft(model)(tokens()).logits)


def test_loading_says_what_is_missing(tmp_path):
    vanilla().save_pretrained(tmp_path / "vanilla")
    with pytest.raises(
        ValueError,
        match="was not saved with convolutions from dynaconv.graft: load it with transformers.AutoModelForCausalLM",
    ):
        dynaconv.from_pretrained(tmp_path / "vanilla")
    model = grafted()
    weights = {name: tensor for name, tensor in model.state_dict().items() if "basis" not in name}
    model.save_pretrained(tmp_path / "part", state_dict=weights)
    with pytest.raises(
        ValueError, match=r"lacks 6 parameters of short convolutions that its config.json tells of: model.layers.0"
    ):
        dynaconv.from_pretrained(tmp_path / "part")


@torch.no_grad()
def test_copies_and_pickles():
    model, ids = grafted("llama", "all_linear"), tokens()
    expected = model(ids).logits
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(again(ids).logits, expected)
        assert_close(in_chunks(again, ids, 2), expected)
        for parameter in again.parameters():
            parameter.zero_()
        assert torch.equal(model(ids).logits, expected)


def real_text():
    """Bytes of the licence as rows of 32 tokens below 61."""
    text = (Path(__file__).parents[1] / "LICENSE").read_bytes().lower()
    ids = torch.tensor([3 + (byte - 32) % 58 for byte in text if byte >= 32])
    return ids[: len(ids) // 32 * 32].view(-1, 32)


def train(model, path, steps):
    rows = [{"input_ids": row, "labels": row} for row in real_text()]
    arguments = transformers.TrainingArguments(
        str(path), max_steps=steps, per_device_train_batch_size=16, learning_rate=1e-2, report_to=[], use_cpu=True,
        save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
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
    readme = Path(__file__).parents[1] / "README.md"
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


def test_convolutions_of_one_input_share_a_projection(monkeypatch):
    model, calls = grafted("llama", "all_linear"), []
    conditions = dynaconv.nn.ShortConvGroup.conditions
    monkeypatch.setattr(
        dynaconv.nn.ShortConvGroup, "conditions", lambda self, x: calls.append(self) or conditions(self, x)
    )
    model(tokens())
    assert len(calls) == len(set(calls)) == 2 * 4  # qkv, o, gate and up, down
    layer = model.model.layers[0].short_convs
    assert sorted(layer) == ["mlp_down_proj", "mlp_gate_up", "self_attn_o_proj", "self_attn_qkv"]
    assert layer["self_attn_qkv"].projection.weight.shape == (3 * 3, 32)


class Unknown(torch.nn.Module):
    pass


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda m: dynaconv.graft(m, rank=2.5), TypeError, "rank must be int; got 2.5"),
    (lambda m: dynaconv.graft(m, ["q"]), ValueError, "placement must be letters of"),
    (lambda m: dynaconv.graft(m, rank=0), ValueError, "rank must be at least 1; got 0"),
    (lambda m: dynaconv.graft(m, width=0), ValueError, "dim and width must be at least 1"),
    (lambda m: dynaconv.graft(m, kind="dynamic"), ValueError, "kind must be one of lowrank, headwise, static; got 'dynamic'"),
    (lambda m: dynaconv.graft(m, kind="headwise", head_dim=5), ValueError, "self_attn_qkv of LlamaDecoderLayer: dim must be divisible by head_dim; got dim = 32, head_dim = 5"),
    (lambda m: dynaconv.graft(m, placement=""), ValueError, "placement must be letters of"),
    (lambda m: dynaconv.graft(m, placement="mlp"), ValueError, "got 'mlp'"),
    (lambda m: dynaconv.graft(m, placement="qq"), ValueError, "each once"),
    (lambda m: dynaconv.graft(m, init="zero"), ValueError, "init must be"),
    (lambda m: dynaconv.ungraft(m), ValueError, "model must have short convolutions"),
    (lambda m: dynaconv.graft(m.model.layers[0]), TypeError, "PreTrainedModel, before adapters.*; got LlamaDecoderLayer"),
    (lambda m: dynaconv.graft(m.model), ValueError, "must be a causal language model"),
])  # fmt: skip
def test_misuse_leaves_the_model_as_it_was(call, error, message):
    model, ids = vanilla(), tokens()
    before, kinds, keys = model(ids).logits, list(map(type, model.modules())), list(model.state_dict())
    with pytest.raises(error, match=message):
        call(model)
    assert list(map(type, model.modules())) == kinds
    assert list(model.state_dict()) == keys
    assert torch.equal(model(ids).logits, before)
    assert not hasattr(model.config, "dynaconv")


def test_other_misuse():
    with pytest.raises(ValueError, match="has short convolutions already: call dynaconv.ungraft first"):
        dynaconv.graft(dynaconv.graft(vanilla()))
    falcon = AutoModelForCausalLM.from_config(AutoConfig.for_model("falcon", hidden_size=32, num_hidden_layers=1, num_attention_heads=4))  # fmt: skip
    with pytest.raises(ValueError, match="layout that is not known, FalconForCausalLM: its layers have self_attention.query_key_value"):  # fmt: skip
        dynaconv.graft(falcon)
    config = AutoConfig.for_model("t5", d_model=32, num_layers=1, d_kv=8, d_ff=32, num_heads=4)
    with pytest.raises(ValueError, match="model must be a causal language model.*got T5ForConditionalGeneration"):
        dynaconv.graft(AutoModelForSeq2SeqLM.from_config(config))


def test_what_would_not_take_effect_is_refused(monkeypatch):
    model = vanilla()
    model.model.layers[1].self_attn.q_proj.forward = torch.nn.Identity().forward
    with pytest.raises(
        ValueError, match="forward of Linear was replaced, by device_map, offloading or a patch: graft before"
    ):
        dynaconv.graft(model)
    with monkeypatch.context() as patch:
        patch.setattr(transformers.models.llama.modeling_llama.LlamaDecoderLayer, "forward", lambda self, x: x)
        with pytest.raises(ValueError, match="forward of the layer 0, LlamaDecoderLayer, takes no"):
            dynaconv.graft(vanilla())
    inner, outer = dynaconv.graft(vanilla()), vanilla()
    outer.model = inner.model
    with pytest.raises(ValueError, match="has short convolutions already"):
        dynaconv.graft(outer)
    model = dynaconv.graft(vanilla())
    layer = model.model.layers[0]
    layer.__class__ = type("FSDPLayer", (type(layer),), {})
    kinds = list(map(type, model.modules()))
    with pytest.raises(ValueError, match="FSDPLayer was changed after the graft"):
        dynaconv.ungraft(model)
    assert list(map(type, model.modules())) == kinds
    with pytest.raises(ValueError, match="exactly one of input_ids or inputs_embeds"):
        dynaconv.graft(vanilla())()


@pytest.mark.parametrize(("entry", "message"), [
    ({"placement": "qkv", "model": 1}, "dynaconv in the config.json of .* must have"),
    ("yes", "got 'yes'"), ({"rank": "3"}, "rank must be int; got '3'"), ({"placement": 5}, "placement must be letters"),
])  # fmt: skip
def test_hostile_checkpoints(tmp_path, entry, message):
    model = dynaconv.graft(vanilla())
    model.config.dynaconv = entry
    model.save_pretrained(tmp_path)
    with pytest.raises((ValueError, TypeError), match=message):
        dynaconv.from_pretrained(tmp_path)


def test_loading_takes_the_keywords_of_transformers(tmp_path):
    model = grafted()
    model.save_pretrained(tmp_path / "sub", max_shard_size="20KB")
    loaded, info = dynaconv.from_pretrained(
        tmp_path, subfolder="sub", dtype=torch.bfloat16, attn_implementation="eager", use_cache=False, output_loading_info=True,
    )  # fmt: skip
    assert loaded.dtype == torch.bfloat16
    assert loaded.config.use_cache is False
    assert not info["missing_keys"]
    torch.testing.assert_close(loaded.eval()(tokens()).logits.float(), model(tokens()).logits, rtol=0.1, atol=0.1)


def test_caches_of_the_wrong_kind():
    model, ids = grafted(), tokens()
    full = vanilla()(ids).past_key_values
    with pytest.raises(ValueError, match="past_key_values holds 13 tokens that the short convolutions have not seen"):
        model(ids, past_key_values=full)
    cache = DynamicCache(config=model.config)
    cache.layers[1] = LinearAttentionLayer()
    with pytest.raises(TypeError, match="must have layers with keys and values.*got LinearAttentionLayer"):
        model(ids, past_key_values=cache)
    with pytest.raises(TypeError, match="must be a transformers Cache of a decoder.*got EncoderDecoderCache"):
        model(ids, past_key_values=transformers.EncoderDecoderCache(DynamicCache(), DynamicCache()))
    with pytest.raises(TypeError, match="must be a transformers Cache of a decoder.*got tuple"):
        model(ids, past_key_values=((ids, ids),))
    cache = model(ids[:, :4]).past_key_values
    dynaconv.ungraft(copy.deepcopy(model))(ids[:, 4:6], past_key_values=cache)
    with pytest.raises(
        ValueError, match="holds 6 tokens, of which the convolutions have seen 4: something else has changed"
    ):
        model(ids[:, 6:], past_key_values=cache)
    cache = model(ids[:, :4]).past_key_values
    with pytest.raises(ValueError, match="4 tokens that the convolution self_attn_o_proj.o_proj has not seen"):
        grafted("llama", "all_linear")(ids[:, 4:], past_key_values=cache)
    with pytest.raises(RuntimeError, match="do not work with continuous batching"):
        model.generate_batch([[5, 6, 7]])
    cache = model(ids).past_key_values
    with pytest.raises(RuntimeError, match="2 tokens cannot be taken back, 0 were recorded"):
        cache.crop(-2)


def test_a_part_called_on_its_own_is_refused():
    model, x = grafted(), torch.randn(2, 5, 32)
    with pytest.raises(RuntimeError, match="q_proj with a short convolution must be called by its decoder layer"):
        model.model.layers[0].self_attn.q_proj(x)
    with pytest.raises(RuntimeError, match="LlamaDecoderLayer with short convolutions must be called by its decoder"):
        model.model.layers[0](x)
