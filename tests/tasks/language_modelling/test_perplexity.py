"""Perplexity: that of the logits, in any windows and batches, of text files and of converted models."""

import json
import math

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import dynaconv
from dynaconv.tasks.language_modelling.perplexity import Prediction, _windows, predict
from dynaconv.tasks.language_modelling.report import _units, encode
from dynaconv.training.loading import first_token

from ...conftest import run_cli

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
CONFIG = LlamaConfig(vocab_size=40, max_position_embeddings=32, bos_token_id=1, eos_token_id=2, **SIZES)
WORDS = [f"w{n}" for n in range(36)]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG)
    torch.nn.init.normal_(model.lm_head.weight)  # so that what comes before matters
    return model.eval()


@pytest.fixture(scope="module")
def tokenizer():
    vocabulary = {name: n for n, name in enumerate(["<unk>", "<s>", "</s>", "<pad>", *WORDS])}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=plain, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def sequences(*lengths):
    generator = torch.Generator().manual_seed(3)
    return [[1, *torch.randint(3, 40, (length - 1,), generator=generator).tolist()] for length in lengths]


def nats_of(model, ids, first=0):
    """Of the tokens behind ids[first], by the definition."""
    with torch.no_grad():
        logs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return -sum(logs[i, ids[i + 1]].item() for i in range(first, len(ids) - 1))


@pytest.mark.parametrize("max_tokens", [1, 40, 4096])
def test_whole_sequences(model, max_tokens):
    given = sequences(9, 2, 30, 5, 1)
    found = predict(model, given, window=32, max_tokens=max_tokens)
    assert found.tokens == 8 + 1 + 29 + 4
    assert found.nats == pytest.approx(sum(nats_of(model, ids) for ids in given), rel=1e-6)
    assert found.perplexity == pytest.approx(math.exp(found.nats / 42))
    assert found.bits_per(7) == pytest.approx(found.nats / math.log(2) / 7)


@pytest.mark.parametrize("overlap", [0, 1, 5, 7])
def test_windows(model, overlap):
    """Every token is predicted once, from all that its window has before it."""
    [ids] = sequences(31)
    window = 8
    expected, first = 0.0, 0
    while first < 30:
        end = min(30, 8 if first == 0 else first + window - overlap)
        begin = max(0, end - window) if overlap else first
        expected += nats_of(model, ids[begin : end + 1], first - begin)
        assert first == 0 or first - begin >= overlap
        first = end
    found = predict(model, [ids], window=window, overlap=overlap, max_tokens=20)
    assert found.tokens == 30
    assert found.nats == pytest.approx(expected, rel=1e-6)
    assert found.nats != pytest.approx(nats_of(model, ids), rel=1e-4)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 40])
@pytest.mark.parametrize(("window", "overlap"), [(1, 0), (8, 0), (8, 3), (8, 7)])
def test_windows_cover_everything_once(count, window, overlap):
    pieces = list(_windows(count, window, overlap))
    assert [t for _, first, end in pieces for t in range(first, end)] == list(range(count))
    assert all(end - begin <= window for begin, _, end in pieces)


def test_improbable_text():
    assert Prediction(2000.0, 2).perplexity == math.inf
    assert math.isnan(Prediction(math.nan, 2).perplexity)


def test_bad_arguments(model):
    with pytest.raises(ValueError, match=r"overlap must be in 0\.\.window-1; got overlap = 8, window = 8"):
        predict(model, sequences(9), window=8, overlap=8)
    with pytest.raises(ValueError, match="there is nothing to predict"):
        predict(model, [[1], []], window=8)


def test_what_a_sequence_is(tokenizer):
    lines = ["w1 w2", "", "w3"]
    w1, w2, w3 = (tokenizer.convert_tokens_to_ids(word) for word in ("w1", "w2", "w3"))
    assert encode(lines, tokenizer, "file", bos=1, eos=2) == [[1, w1, w2, w3]]
    assert encode(lines, tokenizer, "line", bos=1, eos=2) == [[1, w1, w2, 2], [1, 2], [1, w3, 2]]
    assert encode(lines, tokenizer, "joined", bos=2, eos=[2]) == [[2, w1, w2, 2, 2, w3, 2]]
    with pytest.raises(ValueError, match="has no eos_token_id"):
        encode(lines, tokenizer, "line", bos=1, eos=None)


def test_the_ends_of_lines_count_where_they_are_predicted(tokenizer):
    lines = ["w1 w2", "", "w3"]
    assert _units(lines, tokenizer, "line") == {"bytes": 10, "words": 6}
    assert _units(lines, tokenizer, "file") == {"bytes": 9, "words": 3}
    by_bytes = Tokenizer(models.BPE())
    by_bytes.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), vocab_size=300)
    by_bytes.train_from_iterator(lines, trainer)
    keeping = PreTrainedTokenizerFast(tokenizer_object=by_bytes)
    assert _units(lines, keeping, "file") == {"bytes": 10, "words": 6}


def test_what_begins_a_sequence():
    assert first_token(LlamaConfig(bos_token_id=1, eos_token_id=2)) == 1
    assert first_token(LlamaConfig(bos_token_id=None, eos_token_id=[2, 3])) == 2
    with pytest.raises(ValueError, match="no bos_token_id and no eos_token_id"):
        first_token(LlamaConfig(bos_token_id=None, eos_token_id=None))


@pytest.mark.parametrize("grafted", [False, True])
def test_on_the_command_line(model, tokenizer, tmp_path, cache, grafted):
    folder = tmp_path / "model"
    if grafted:
        model = dynaconv.graft(LlamaForCausalLM(CONFIG)).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    generator = torch.Generator().manual_seed(5)
    words = [WORDS[n] for n in torch.randint(36, (60,), generator=generator).tolist()]
    (tmp_path / "text.txt").write_text("".join(" ".join(words[i : i + 6]) + "\n" for i in range(0, 60, 6)))
    result = run_cli("perplexity", folder, tmp_path / "text.txt", "--sequences", "line", "--json",
                     tmp_path / "p.json", cache=cache)  # fmt: skip
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "p.json").read_text())
    ids = encode((tmp_path / "text.txt").read_text().splitlines(), tokenizer, "line", bos=1, eos=2)
    assert record["tokens"] == record["words"] == 70
    assert record["nats"] == pytest.approx(sum(nats_of(model, line) for line in ids), rel=1e-5)
    assert record["perplexity per token"] == pytest.approx(record["perplexity per word"])
    assert "bits per byte" in result.stdout
    result = run_cli("perplexity", folder, tmp_path / "text.txt", "--json", tmp_path / "p.json", cache=cache)
    assert "ends of lines are not counted: the tokenizer does not keep them" in result.stderr
    whole = json.loads((tmp_path / "p.json").read_text())
    assert whole["tokens"] == whole["words"] == 60
    assert whole["bytes"] == record["bytes"] - 1  # no end behind the last line
    for arguments, message in {
        ("--window", "33"): "--window must be in 1..32, what the model is meant for; got 33",
        ("--overlap", "32"): "overlap must be in 0..window-1; got overlap = 32, window = 32",
    }.items():
        result = run_cli("perplexity", folder, tmp_path / "text.txt", *arguments, cache=cache)
        assert result.returncode == 2
        assert message in result.stderr.splitlines()[-1]


def test_an_encoder_decoder_is_refused(toy_run, cache, tmp_path):
    (tmp_path / "text.txt").write_text("five red dogs\n")
    result = run_cli("perplexity", toy_run, tmp_path / "text.txt", cache=cache)
    assert result.returncode == 2
    assert f"the model in {toy_run} is an encoder-decoder, no language model" in result.stderr
