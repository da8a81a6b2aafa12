"""The decoder with short convolutions: training, sharding, saving, parameter and FLOP counts, errors."""

import tempfile

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig

import dynaconv
from dynaconv.models import Cost, DynaConvConfig, DynaConvForCausalLM, compute_matched, count
from dynaconv.models.dynaconv.configuration import PRESETS

from ..conftest import enable_checkpointing
from .support import MODELS, TINY, assert_close, make, tokens


@pytest.mark.parametrize("name", MODELS)
def test_training(name, tmp_path):
    model, ids = make(name).train(), tokens()
    plain = torch.autograd.grad(model(ids, labels=ids).loss, model.parameters())
    enable_checkpointing(model)
    again = torch.autograd.grad(model(ids, labels=ids).loss, model.parameters())
    assert all(map(torch.equal, plain, again))
    assert all(gradient.abs().max() > 0 for gradient in plain)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        loss = model(ids, labels=ids).loss
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] - 0.3
    model.eval().save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(loaded) is DynaConvForCausalLM
    assert torch.equal(loaded(ids).logits, model(ids).logits)


@pytest.mark.parametrize("name", MODELS)
def test_sharded_from_the_meta_device(name):
    """FSDP2 on one process, initialised after sharding; losses are those of the unsharded parameters."""
    with tempfile.NamedTemporaryFile() as file:
        dist.init_process_group("gloo", init_method=f"file://{file.name}", rank=0, world_size=1)
        try:
            with torch.device("meta"):
                model = DynaConvForCausalLM(make(name).config)
            for layer in model.model.layers:
                fully_shard(layer)
            fully_shard(model)
            model.to_empty(device="cpu")
            model.init_weights()
            plain = DynaConvForCausalLM(make(name).config)
            plain.load_state_dict({key: value.full_tensor() for key, value in model.state_dict().items()})
            for _ in range(2):  # parameters are freed and gathered again
                losses = [m(tokens(), labels=tokens()).loss for m in (model, plain)]
                assert torch.equal(*losses)
                losses[0].backward()
        finally:
            dist.destroy_process_group()


def test_balancing_loss_of_experts():
    model, ids = make("experts"), tokens()
    assert model(ids, labels=ids).aux_loss is None
    output = model.train()(ids, labels=ids)
    plain = make("experts", router_aux_loss_coef=0.0).train()(ids, labels=ids)
    assert output.loss.item() == pytest.approx(plain.loss.item() + 0.01 * output.aux_loss.item(), rel=1e-5)


def test_balancing_loss_in_parts():
    """As the Trainer does it: micro-batches whose losses are divided by the tokens of all of them."""
    ids = tokens(4)
    whole = make("experts", router_aux_loss_coef=1.0).train()
    items = ids[:, 1:].numel()
    parts = [whole(row[None], labels=row[None], num_items_in_batch=items) for row in ids]
    plain = [make("experts", router_aux_loss_coef=0.0).train()(row[None], labels=row[None]) for row in ids]
    mean = sum(p.loss + q.aux_loss for p, q in zip(plain, parts)) / 4
    assert sum(part.loss for part in parts).item() == pytest.approx(mean.item(), rel=1e-5)
    enable_checkpointing(whole, {"use_reentrant": True})
    with pytest.raises(ValueError, match="reentrant activation checkpointing loses the balancing loss"):
        whole(ids, labels=ids)


def test_initial_parameters_are_those_of_the_paper():
    torch.manual_seed(0)
    model = DynaConvForCausalLM(DynaConvConfig(**{**TINY, "hidden_size": 128, "initializer_range": 0.02}))
    convs = model.model.layers[0].mixer.qkv_convs
    assert convs.convs["q"].basis.eq(0).all()
    assert 0.2 < convs.convs["q"].static.std() < 0.4
    assert convs.projection.weight.std().item() == pytest.approx(1 / (3 * 128) ** 0.5, rel=0.1)
    assert model.model.embed_tokens.weight[1:].std().item() == pytest.approx(0.02, rel=0.1)


def test_parameters_that_a_checkpoint_lacks_are_initialised_and_no_others(tmp_path):
    static = make("mamba2", conv="static")
    static.save_pretrained(tmp_path)
    torch.manual_seed(1)
    model = DynaConvForCausalLM.from_pretrained(tmp_path, conv="lowrank")
    mixers = [m.model.layers[0].mixer for m in (static, model)]
    for name in ("A_log", "dt_bias", "D", "norm_weight"):
        assert torch.equal(*(getattr(mixer, name) for mixer in mixers))
    assert torch.equal(*(mixer.conv.static for mixer in mixers))
    assert mixers[1].conv.basis.eq(0).all()
    assert 0 < mixers[1].conv.projection.weight.abs().max() < 0.2
    assert_close(model.eval()(tokens()).logits, static(tokens()).logits)


@pytest.mark.parametrize("name", ["mamba2", "gated_deltanet"])
@pytest.mark.parametrize("missing", ["A_log", "norm_weight"])
def test_a_missing_parameter_does_not_cost_its_neighbours(name, missing, tmp_path):
    model = make(name)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    weights = {key: tensor for key, tensor in model.state_dict().items() if missing not in key}
    model.save_pretrained(tmp_path, state_dict=weights)
    loaded = dict(DynaConvForCausalLM.from_pretrained(tmp_path).named_parameters())
    for key, parameter in model.named_parameters():
        assert torch.equal(loaded[key], parameter) == (missing not in key)


def test_overrides_are_checked(tmp_path):
    make("attention").save_pretrained(tmp_path)
    for options, message in (({"ffn": "moes"}, "ffn must be"), ({"placement": "mixer"}, "names nothing"), ({"mixer": "mamba3"}, "mixer must be")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            DynaConvForCausalLM.from_pretrained(tmp_path, **options)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_half_precision_and_no_tokens(name, tmp_path):
    model, ids = make(name), tokens()
    model.save_pretrained(tmp_path)
    half = DynaConvForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    assert all(p.dtype == (torch.float32 if key.endswith(("A_log", "dt_bias")) else torch.bfloat16) for key, p in half.named_parameters())  # fmt: skip
    error = half(ids).logits.float() - model(ids).logits
    assert error.norm() < 0.1 * model(ids).logits.norm()
    if "attention" not in model.config.mixers:
        assert model(ids[:, :0], use_cache=False).logits.shape == (2, 0, 61)
    assert torch.equal(model(ids, logits_to_keep=torch.tensor([2, 5])).logits, model(ids).logits[:, [2, 5]])


# Sieberling et al. 2026, the 300M model: millions of parameters.
PUBLISHED = [
    ({"conv": "none"}, 305.2), ({"conv": "headwise", "conv_head_dim": 128}, 306.9), ({}, 309.3), ({"conv_rank": 128}, 336.8),
    ({"conv": "headwise", "conv_head_dim": 8}, 330.5), ({"conv_width": 1}, 306.8), ({"conv_width": 6}, 311.0),
]  # fmt: skip


@pytest.mark.parametrize(("options", "millions"), PUBLISHED)
def test_published_parameter_counts(options, millions):
    assert count(DynaConvConfig.from_preset("300m", **options), 1).parameters / 1e6 == pytest.approx(millions, abs=0.05)


VARIANTS = [
    {"conv": "none"}, {"conv": "static"}, {"conv": "headwise"}, {"conv": "lowrank"}, {"placement": "all_linear"},
    {"mixer": "mamba2", "placement": "mixer"}, {"mixer": "gated_deltanet", "placement": "mixer", "conv": "headwise"},
    {"placement": "ACD"},
]  # fmt: skip


def counted(config, length):
    """FLOPs per token by PyTorch's counter, without data."""
    with torch.device("meta"), torch.no_grad():
        model = DynaConvForCausalLM(config).eval()
        model.set_attn_implementation("eager")
        model.set_experts_implementation("batched_mm")
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, length, dtype=torch.long), use_cache=False)
    return counter.get_total_flops() / length


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("preset", PRESETS)
def test_flops_and_parameters_of_presets(preset, options):
    config = DynaConvConfig.from_preset(preset, **options)
    cost = count(config, 512)
    assert isinstance(cost, Cost)
    assert cost.forward_flops == counted(config, 512)
    with torch.device("meta"):
        assert cost.parameters == DynaConvForCausalLM(config).num_parameters()
    assert (cost.active_parameters < cost.parameters) == (preset == "7b-a1b")


def test_flops_of_a_mixed_model_at_an_odd_length():
    config = make("mixed").config
    assert count(config, 37).forward_flops == pytest.approx(counted(config, 37), rel=1e-12)


@pytest.mark.parametrize("options", [{}, {"placement": "all_linear"}, {"mixer": "mamba2", "placement": "mixer"}])
@pytest.mark.parametrize("preset", ["300m", "7b-a1b"])
def test_compute_matched_baseline(preset, options):
    config = DynaConvConfig.from_preset(preset, **options)
    baseline = compute_matched(config, 4096)
    costs = [count(c, 4096).forward_flops for c in (config, baseline)]
    assert baseline.conv == "none"
    assert baseline.intermediate_size > config.intermediate_size
    assert costs[1] == pytest.approx(costs[0], rel=3e-4)


@pytest.mark.parametrize(("options", "message"), [
    ({"conv": "dynamic"}, "conv must be one of none, static, headwise, lowrank; got 'dynamic'"),
    ({"ffn": "big"}, "ffn must be one of dense, moe; got 'big'"),
    ({"mixer": "mamba"}, "mixer must be of attention, mamba2, gated_deltanet; got mamba"),
    ({"mixer": ["attention"]}, "one for each of the 2 layers; got 1"),
    ({"placement": "x"}, 'placement must be letters of "qkv" or "ABCD", each once, or "mixer" or "all_linear"; got \'x\''),
    ({"placement": "mixer"}, "placement='mixer' names nothing: it is for layers with gated_deltanet or mamba2; got attention, for which there is qkv"),
    ({"placement": "BD", "mixer": "mamba2", "ffn": "moe"}, "placement='BD' names nothing: B is for layers with attention, D for ffn='dense'"),
    ({"placement": "Aq"}, 'placement must be letters of "qkv" or "ABCD", each once'),
    ({"mixer": "mamba2"}, "placement='qkv' names nothing: it is for layers with attention; got mamba2, for which there is mixer"),
    ({"num_key_value_heads": 3}, "num_attention_heads must be divisible by num_key_value_heads"),
    ({"mixer": "gated_deltanet", "placement": "mixer", "delta_head_dim": 16}, "3 hidden_size must be divisible by 4 delta_head_dim"),
    ({"hidden_size": 40, "num_attention_heads": 16}, "hidden_size must be divisible by num_attention_heads"),
    ({"head_dim": 7}, "head_dim must be divisible by 2"),
    ({"ffn": "moe", "num_experts": 1}, "num_experts_per_tok must be at most num_experts; got 2, 1"),
    ({"conv_rank": 0}, "conv_rank must be at least 1; got 0"),
    ({"mixer": "mamba2", "placement": "mixer", "mamba_head_dim": 5}, "2 hidden_size must be divisible by mamba_head_dim"),
    ({"conv": "headwise", "conv_head_dim": 5}, "dim must be divisible by head_dim; got dim = 32, head_dim = 5"),
])  # fmt: skip
def test_misuse_is_explained(options, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        DynaConvForCausalLM(DynaConvConfig(**{**TINY, **options}))


def test_presets_and_calls_are_checked():
    with pytest.raises(ValueError, match="no preset '3b'; there are 150m, 300m"):
        DynaConvConfig.from_preset("3b")
    with pytest.raises(ValueError, match="DynaConvConfig has no width"):
        DynaConvConfig.from_preset("300m", width=3)
    with pytest.raises(ValueError, match="give either input_ids or inputs_embeds"):
        make("attention")()
    with pytest.raises(ValueError, match="tokens must be at least 1; got 0"):
        count(DynaConvConfig(**TINY), 0)
    with pytest.raises(TypeError, match="config must be a DynaConvConfig; got LlamaConfig"):
        count(LlamaConfig(), 10)
    with pytest.raises(
        ValueError, match="model has short convolutions of its own, DynaConvForCausalLM: choose them in its"
    ):
        dynaconv.graft(make("attention"))
    assert DynaConvConfig.from_preset("300m", hidden_size=80, num_attention_heads=4).mamba_head_dim == 64
    lines = str(count(DynaConvConfig.from_preset("7b-a1b"), 4096)).splitlines()
    assert lines[:2] == ["parameters        6,926.830 M", "active            1,289.685 M"]
    assert lines[-1].startswith("forward pass")
