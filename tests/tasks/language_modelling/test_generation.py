"""`dynaconv generate`: prompts from arguments and standard input, sampling, mistakes."""

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from dynaconv.cli import main
from dynaconv.data.vocabulary import learn_vocabulary
from dynaconv.models import DynaConvConfig, DynaConvForCausalLM


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tokenizer: PreTrainedTokenizerFast = learn_vocabulary(["the old can opener, the old can swim"] * 5, "bytes", 270)
    config = DynaConvConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        conv_rank=4, bos_token_id=0, eos_token_id=2, pad_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    DynaConvForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def generate(model, capfd):
    def run(*arguments: object) -> str:
        main(["generate", model, *map(str, arguments)])
        return capfd.readouterr().out

    return run


def test_greedily_it_is_the_same_every_time(generate):
    first, again = (generate("the old", "--temperature", 0, "--max-new-tokens", 9) for _ in range(2))
    assert first == again
    assert first.startswith("the old")


def test_a_seed_decides_what_is_drawn(generate):
    options = ("the old", "--max-new-tokens", 20, "--top-k", 0)
    first, again, other = (generate(*options, "--seed", seed) for seed in (1, 1, 2))
    assert first == again != other


def test_samples_of_prompts(generate):
    shown = generate("the", "swim", "--samples", 2, "--max-new-tokens", 1, "--seed", 1)
    assert shown.count("the") >= 2
    assert shown.count("swim") >= 2


def test_prompts_from_standard_input(model, monkeypatch, tmp_path, capfd, caplog):
    (tmp_path / "prompts").write_text("the old\ncan\n")
    with (tmp_path / "prompts").open() as stream:
        monkeypatch.setattr("sys.stdin", stream)
        main(["generate", model, "--max-new-tokens", "1", "--temperature", "0"])
    printed = capfd.readouterr()
    assert printed.out.startswith("the old")
    assert "can" in printed.out
    assert "tokens/s" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--temperature", "-1"), "--temperature: input should be greater than or equal to 0; got -1.0"),
        (("--temperature", "inf"), "--temperature: must be a finite number; got inf"),
        (("--top-p", "0"), "--top-p: input should be greater than 0; got 0.0"),
        (("--max-new-tokens", "0"), "--max-new-tokens: input should be greater than or equal to 1; got 0"),
    ],
)
def test_mistakes(generate, capfd, options, message):
    with pytest.raises(SystemExit):
        generate("the", *options)
    assert message in capfd.readouterr().err


def test_a_translation_model_is_refused(toy_run, capsys):
    with pytest.raises(SystemExit):
        main(["generate", str(toy_run), "a"])
    assert "use dynaconv translate or summarize" in capsys.readouterr().err
