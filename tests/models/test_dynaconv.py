"""The decoder with short convolutions: parity with Llama, caches, padding, packed sequences, generation."""

import pytest
import torch
from transformers import DynamicCache, StaticCache

from dynaconv.nn import ShortConv, Stream, StreamStates

from ..conftest import enable_checkpointing
from .support import MODELS, assert_close, differs, in_chunks, llama_of, make, tokens


@torch.no_grad()
def test_without_convolutions_it_is_llama():
    model = make("attention", conv="none")
    assert_close(model(tokens()).logits, llama_of(model)(tokens()).logits)


@pytest.mark.parametrize(
    ("placement", "convolved"),
    [("A", {"mixer_input"}), ("B", {"q", "k", "v"}), ("C", {"ffn_input"}), ("D", {"gate", "up"}), ("qv", {"q", "v"})],
)
@torch.no_grad()
def test_where_convolutions_are(placement, convolved):
    """One at each place, of what is there: with the current tap alone it doubles it, for which weights can stand."""
    model = make("attention", placement=placement, conv="static")
    places = {name for layer in model.model.layers for name, m in layer.named_modules() if isinstance(m, ShortConv)}
    assert {name.rsplit(".", 1)[-1] for name in places} == convolved
    plain = make("attention", conv="none")
    plain.load_state_dict(model.state_dict(), strict=False)
    for layer, other in zip(model.model.layers, plain.model.layers, strict=True):
        for conv in (m for m in layer.modules() if isinstance(m, ShortConv)):
            conv.static.zero_()[..., -1] = 1
        doubled = {"A": [other.mixer_norm], "C": [other.ffn_norm], "D": [other.ffn.gate_proj, other.ffn.up_proj]}
        projections = [getattr(other.mixer, f"{name}_proj") for name in convolved if len(name) == 1]
        for module in doubled.get(placement, projections):
            module.weight.mul_(2)
    assert_close(model(tokens()).logits, plain(tokens()).logits)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_decoding_equals_the_whole(name, monkeypatch):
    model, ids = make(name), tokens()
    whole = model(ids).logits
    for chunk in (1, 2, 5):
        assert_close(in_chunks(model, ids, chunk), whole)
        assert_close(in_chunks(model, ids, chunk, DynamicCache(config=model.config)), whole)
    past = model(ids).cache
    assert past.get_seq_length() == 13
    if all(mixer == "attention" for mixer in model.config.mixers):
        assert_close(in_chunks(model, ids, 5, StaticCache(config=model.config, max_cache_len=20)), whole)
    past = StreamStates.past
    monkeypatch.setattr(StreamStates, "past", lambda *arguments: torch.zeros_like(past(*arguments)))
    assert differs(in_chunks(model, ids, 2), whole)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_left_padding(name, monkeypatch):
    model, ids = make(name), tokens()
    padded = torch.cat([torch.full((2, 3), 5), ids], 1)
    mask = torch.ones_like(padded)
    mask[0, :3] = 0
    whole = model(ids[:1]).logits
    assert_close(model(padded, attention_mask=mask).logits[:1, 3:], whole)
    for chunk in (1, 2, 5):
        assert_close(in_chunks(model, padded, chunk, mask=mask)[:1, 3:], whole)
    model.generation_config.eos_token_id = None
    expected = model.generate(ids[:1], max_new_tokens=6, do_sample=False)[0, 13:]
    assert torch.equal(model.generate(padded, attention_mask=mask, max_new_tokens=6, do_sample=False)[0, 16:], expected)
    assert_close(model(padded, attention_mask=mask, use_cache=False).logits[:1, 3:], whole)
    monkeypatch.setattr(Stream, "masked", lambda self, x: x)
    assert differs(model(padded, attention_mask=mask, use_cache=False).logits[:1, 3:], whole)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_padding_behind_tokens_is_skipped_when_they_are_gone_on_with(name, monkeypatch):
    model, ids = make(name), tokens(2, 16)
    row = torch.cat([ids[:, :11], torch.full((2, 3), 5), ids[:, 11:]], 1)
    mask = torch.ones_like(row)
    mask[:, 11:14] = 0
    positions = mask.cumsum(1) - 1
    whole = model(ids).logits
    for cut in (11, 12, 14):
        first = model(row[:, :cut], attention_mask=mask[:, :cut], position_ids=positions[:, :cut])
        rest = model(row[:, cut:], attention_mask=mask, position_ids=positions[:, cut:], cache=first.cache)
        assert_close(torch.cat([first.logits, rest.logits], 1)[mask.bool()].view_as(whole), whole)
    convolve = StreamStates.convolve
    monkeypatch.setattr(StreamStates, "convolve", lambda *given, padding, **named: convolve(*given, **named))
    first = model(row[:, :14], attention_mask=mask[:, :14], position_ids=positions[:, :14])
    rest = model(row[:, 14:], attention_mask=mask, position_ids=positions[:, 14:], cache=first.cache)
    assert differs(rest.logits, whole[:, 11:])


def test_what_may_be_taken_back_has_no_padding_behind_it():
    stream = StreamStates()
    stream.record_past = True
    conv, x, padding = ShortConv(4), torch.randn(2, 5, 4), torch.zeros(2, 5, dtype=torch.bool)
    padding[0, :2] = True
    Stream(~padding, states=stream).convolve(conv, "x", x)
    with pytest.raises(ValueError, match="padding behind a token cannot be recorded to be taken back"):
        Stream(~padding, states=stream).convolve(conv, "x", x)


def test_continuous_batching_is_refused():
    with pytest.raises(RuntimeError, match=r"DynaConvForCausalLM does not work with continuous batching: use generate"):
        make("attention").generate_batch([[5, 6]])


@pytest.mark.parametrize("name", MODELS)
def test_packed_sequences(name):
    model, ids = make(name), tokens(2, 14)
    ends = [0, 1, 6, 14]
    separate = [torch.cat([model(row[None, a:b]).logits for a, b in zip(ends, ends[1:])], 1) for row in ids]
    positions = torch.cat([torch.arange(b - a) for a, b in zip(ends, ends[1:])]).expand(2, -1)
    packed = model(ids, position_ids=positions)
    assert packed.cache is None
    assert_close(packed.logits, torch.cat(separate))
    ends = torch.tensor(ends)
    ends = torch.cat([ends, 14 + ends[1:]]).int()
    assert_close(model(ids, cu_seq_lens_q=ends).logits, torch.cat(separate))
    assert_close(model(ids, cu_seq_lens_q=ends, attention_mask=torch.ones(2, 14)).logits, torch.cat(separate))
    assert_close(model(ids, cu_seq_lens_q=ends, position_ids=positions).logits, torch.cat(separate))
    with pytest.raises(ValueError, match="packed sequences have no padding"):
        model(ids, cu_seq_lens_q=ends, attention_mask=torch.eye(2, 14))
    with pytest.raises(ValueError, match="every row must begin a sequence"):
        model(ids, cu_seq_lens_q=torch.tensor([0, 13, 28]))
    with pytest.raises(ValueError, match="packed sequences are not continued"):
        model(ids, cu_seq_lens_q=ends, cache=DynamicCache())
    assert differs(model(ids).logits, torch.cat(separate))
    gradients = [
        torch.autograd.grad(y.square().mean(), model.parameters()) for y in (torch.cat(separate), packed.logits)
    ]
    for expected, actual in zip(*gradients):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_generation_equals_that_without_a_cache(name):
    model, ids = make(name), tokens()
    for way in ({"num_beams": 3}, {"do_sample": True, "top_k": 5, "num_return_sequences": 2}):
        results = []
        for cache in (True, False):
            torch.manual_seed(3)
            results.append(model.generate(ids, max_new_tokens=7, use_cache=cache, **({"do_sample": False} | way)))
        assert torch.equal(*results)


@torch.no_grad()
def test_assisted_generation():
    model, ids = make("all linear"), tokens(1)
    expected = model.generate(ids, max_new_tokens=12, do_sample=False)
    assert torch.equal(
        model.generate(ids, max_new_tokens=12, do_sample=False, assistant_model=make("attention")), expected
    )
    with pytest.raises(ValueError, match="assisted generation is not supported with stateful models"):
        make("mamba2").generate(ids, assistant_model=make("attention"))


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_static_caches(name):
    """States of recurrences are of fixed size; left padding is in the masks that generation makes in advance."""
    model, ids = make(name), tokens()
    for chunk in (1, 5):
        cache = StaticCache(config=model.config, max_cache_len=20)
        assert_close(in_chunks(model, ids, chunk, cache), model(ids).logits)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0

    def logits(**options):
        asked = {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
        return torch.stack(model.generate(ids, **asked, **options).logits)

    static = logits(attention_mask=mask, cache_implementation="static")
    assert_close(static, logits(attention_mask=mask))
    assert differs(static, logits())


@torch.no_grad()
def test_both_names_of_a_cache():
    model, ids = make("all linear"), tokens()
    for name in ("cache", "past_key_values"):
        cache = model(ids[:, :5]).cache
        assert_close(model(ids[:, 5:], **{name: cache}).logits, model(ids).logits[:, 5:])
    with pytest.raises(TypeError, match="either cache or past_key_values, its older name; got both"):
        model(ids[:, 5:], cache=cache, past_key_values=cache)


def test_an_unknown_argument_is_refused():
    """A cache under a name that a later version of transformers invents must not be swallowed."""
    model, ids = make("attention"), tokens()
    with pytest.raises(TypeError, match="DynaConvModel has no argument kv_store"):
        model(ids, kv_store=DynamicCache())
    with pytest.raises(TypeError, match="DynaConvModel has no argument atention_mask"):
        model.model(ids, atention_mask=torch.ones_like(ids))


def test_a_cache_under_activation_checkpointing_changes_no_gradient():
    """The second forward pass must not append to the cache once more."""
    model, ids = make("all linear").train(), tokens()
    expected = torch.autograd.grad(model(ids, labels=ids, use_cache=False).loss, model.parameters())
    for reentrant in (False, True):
        enable_checkpointing(model, {"use_reentrant": reentrant})
        for options in ({"use_cache": True}, {"cache": DynamicCache()}):
            model.zero_grad()
            model(ids, labels=ids, **options).loss.backward()
            for parameter, gradient in zip(model.parameters(), expected):
                torch.testing.assert_close(parameter.grad, gradient)


def test_labels_that_are_shifted_already():
    model, ids = make("experts").train(), tokens()
    shifted = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-100)
    expected = model(ids, labels=ids).loss
    assert_close(model(ids, labels=ids, shift_labels=shifted).loss, expected)
    assert_close(model(ids, shift_labels=shifted).loss, expected)
    assert_close(model(ids, shift_labels=shifted, num_items_in_batch=2 * 12).loss, expected)
    assert differs(model(ids, labels=ids, shift_labels=ids).loss, expected)
