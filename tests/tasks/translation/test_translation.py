"""Translating and evaluating from the command line."""

import json
import shutil
import subprocess
import sys

import pytest
import torch

from dynaconv import cli, versions
from dynaconv.tasks.translation.evaluation import score
from dynaconv.tasks.translation.translator import Translator

from ...conftest import run_cli, toy_pairs


@pytest.fixture(scope="module")
def translator(toy_run):
    return Translator.from_pretrained(toy_run, "cpu")


def translate(toy_run, text, *options):
    return run_cli("translate", toy_run, "--device", "cpu", *options, cache=toy_run.parent, input=text)


def test_the_toy_language_is_learned(translator):
    pairs = toy_pairs(50, seed=5)
    found = translator.generate([source for source, _ in pairs])
    correct = sum(best[0].text == target for best, (_, target) in zip(found, pairs, strict=True))
    assert correct >= 45


def test_lines_of_every_kind_in_order(toy_run):
    known = [source for source, _ in toy_pairs(3, seed=6)]
    lines = [known[0], "", "我喜欢猫", known[1], "rote Hunde " * 5000, "   ", known[2]]
    result = translate(toy_run, "\n".join(lines).encode() + b"\nkaputt \xff\xfe\n")
    assert result.returncode == 0, result.stderr
    output = result.stdout.split("\n")[:-1]
    alone = translate(toy_run, "\n".join(known).encode()).stdout.split("\n")
    assert len(output) == 8
    assert [output[0], output[3], output[6]] == alone[:3]
    assert output[1] == output[5] == ""
    assert len(output[4].split()) > 200  # 40 pieces of a few words each
    messages = result.stderr
    assert "line 3: " in messages
    assert "tokens are unknown to the model" in messages
    assert "line 5: 10001 tokens, translated in" in messages
    assert "line 8: not valid UTF-8" in messages
    assert "lines/s" in messages


def test_nbest(toy_run):
    result = translate(toy_run, b"zwei rote Hunde sehen drei blaue Katzen\n\n", "--nbest", "2", "--beams", "3")
    rows = [line.split("\t") for line in result.stdout.splitlines()]
    assert [row[0] for row in rows] == ["1", "1", "2", "2"]
    assert float(rows[0][1]) >= float(rows[1][1])
    assert rows[0][2] != rows[1][2]
    assert translate(toy_run, b"x\n", "--nbest", "5").returncode == 2


def test_scores_are_log_probabilities_per_token(translator):
    """Beam search over one beam is greedy search; its score is the mean log-probability, as teacher forcing gives it."""
    line = toy_pairs(1, seed=8)[0][0]
    [[best]] = translator.generate([line], beams=1)
    ids = torch.tensor([translator.tokenizers["source"](line)["input_ids"]])
    labels = torch.tensor([translator.tokenizers["target"](best.text)["input_ids"]])
    with torch.no_grad():
        loss = translator.model(ids, labels=labels).loss.item()
    assert best.score == pytest.approx(-loss, abs=1e-4)


def test_a_model_with_code_of_its_own_is_refused(tmp_path, toy_run):
    """Also where the first line of the text is "yes", which transformers would take for consent."""
    shutil.copytree(toy_run, tmp_path / "evil", ignore=shutil.ignore_patterns("checkpoint-*"))
    config = {"model_type": "unheard_of", "auto_map": {"AutoConfig": "evil.Evil", "AutoModelForSeq2SeqLM": "evil.Evil"}}
    (tmp_path / "evil" / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    result = translate(tmp_path / "evil", b"yes\n")
    assert result.returncode == 2
    assert not (tmp_path / "ran").exists()
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_damaged_files(tmp_path, toy_run, name):
    shutil.copytree(toy_run, tmp_path / "damaged", ignore=shutil.ignore_patterns("checkpoint-*"))
    content = (toy_run / name).read_bytes()
    (tmp_path / "damaged" / name).write_bytes(content[: len(content) // 2])
    result = translate(tmp_path / "damaged", b"zwei Hunde\n")
    assert result.returncode == 2
    assert "damaged cannot be loaded, a file of it may be damaged" in result.stderr
    assert "Traceback" not in result.stderr


def test_files_and_missing_models(toy_run, tmp_path, cache):
    (tmp_path / "a.txt").write_text("zwei rote Hunde sehen drei blaue Katzen\n")
    result = run_cli("translate", toy_run, tmp_path / "a.txt", tmp_path / "a.txt", cache=cache)
    first, second = result.stdout.splitlines()
    assert first == second
    for arguments, message in {
        (tmp_path / "absent",): f"no model in {tmp_path / 'absent'}",
        (toy_run, tmp_path / "absent.txt"): "absent.txt",
        (toy_run, tmp_path): f"{tmp_path} is a folder: give a file",
        (toy_run, "--beams", "0"): "--beams: input should be greater than or equal to 1; got 0",
        (toy_run, "--max-tokens", "-5"): "--max-tokens: input should be greater than or equal to 1; got -5",
        (toy_run, "--length-penalty", "nan"): "--length-penalty: must be a finite number; got nan",
    }.items():
        result = run_cli("translate", *arguments, cache=cache, stdin=subprocess.DEVNULL)
        assert result.returncode == 2
        assert message in result.stderr.splitlines()[-1]
        assert "Traceback" not in result.stderr


def test_evaluate(toy_run, tmp_path, cache):
    result = run_cli(
        "evaluate",
        toy_run,
        toy_run / "test.tsv",
        "--json",
        tmp_path / "s.json",
        "--hypotheses",
        tmp_path / "h.txt",
        "--samples",
        2,
        cache=cache,
    )
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "s.json").read_text())
    assert record["scores"]["BLEU"]["score"] > 80
    assert "tok:13a" in record["scores"]["BLEU"]["signature"]
    assert record["sentences"] == 40
    assert len((tmp_path / "h.txt").read_text().splitlines()) == 40
    assert "tokenized BLEU" in result.stdout
    assert result.stdout.count("reference") == 2


def test_scores():
    references = ["The well-known cat sat on the mat.", "Dogs bark at night, too."]
    same = score(references, [references], language="en", compound_split=True)
    assert {name: entry["score"] for name, entry in same.items()} == {"BLEU": 100, "chrF": 100, "tokenized BLEU": 100}
    upper = [line.upper() for line in references]
    assert score(upper, [references], language="en", lowercase=True)["BLEU"]["score"] == 100
    assert score(upper, [references], language="en")["BLEU"]["score"] < 50


@pytest.mark.parametrize("command", ["train", "translate", "evaluate", "score", "perplexity", "data"])
def test_help_shows_an_example(command, cache):
    result = run_cli(command, "--help", cache=cache)
    assert result.returncode == 0
    assert "Example: " in " ".join(result.stdout.split())
    assert f"dynaconv {command}" in result.stdout


def test_usage(cache):
    assert "dynaconv COMMAND --help" in run_cli(cache=cache).stdout


def test_versions_without_importing(cache):
    code = (
        "import sys; from dynaconv import cli; cli.main(['--version']);"
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *lines, imported = result.stdout.splitlines()
    names = ["dynaconv", "python", "torch", "transformers", "tokenizers", "accelerate", "triton"]
    assert [line.split(" ", 1)[0] for line in lines] == names
    assert f"torch {torch.__version__}" in lines
    assert imported == "set()"


def test_versions_of_what_is_not_installed(monkeypatch, capsys):
    monkeypatch.setattr(versions, "_PACKAGES", ("torch", "no-such-package"))
    cli.main(["--version"])
    assert "no-such-package not installed" in capsys.readouterr().out.splitlines()
