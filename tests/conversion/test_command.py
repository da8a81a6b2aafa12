"""`dynaconv convert-fairseq`, and the other commands on what it wrote."""

import json

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from dynaconv import cli
from dynaconv.tasks.translation.translator import Translator

from .support import arrays_of, checkpoint_of

BEAMS = ((1, 1.0), (4, 1.0), (5, 0.5))


def symbols(tokens, tokenizer):
    return [symbol for symbol in tokenizer.convert_ids_to_tokens(tokens) if symbol not in ("<pad>", "</s>")]


def run(*arguments):
    cli.main([str(argument) for argument in arguments])


def test_converted_translated_and_evaluated(tmp_path, capsys):
    path = checkpoint_of(tmp_path / "fairseq")
    run("convert-fairseq", path, "--out", tmp_path / "ours")
    printed = capsys.readouterr().out
    assert "43,296 parameters" in printed
    assert "dynaconv translate" in printed
    arrays = arrays_of("dyn_post")
    translator = Translator.from_pretrained(tmp_path / "ours", "cpu")
    source, target = translator.tokenizers.values()
    lines = [" ".join(symbols(tokens, source)) for tokens in arrays["main_left/src_tokens"]]
    for beams, length_penalty in BEAMS:
        expected = arrays[f"main_left/beam{beams}_lenpen{length_penalty}/tokens"]
        scores = arrays[f"main_left/beam{beams}_lenpen{length_penalty}/scores"]
        found = translator.generate(lines, beams=beams, length_penalty=length_penalty, nbest=beams)
        hypotheses = [hypothesis for row in found for hypothesis in row]
        assert [hypothesis.text.split() for hypothesis in hypotheses] == [
            symbols(tokens, target) for tokens in expected
        ]
        torch.testing.assert_close(
            torch.tensor([h.score for h in hypotheses]), torch.tensor(scores).float(), atol=1e-4, rtol=0
        )
    best = [" ".join(symbols(tokens, target)) for tokens in arrays["main_left/beam4_lenpen1.0/tokens"][::4]]
    (tmp_path / "test.tsv").write_text("".join(f"{source}\t{target}\n" for source, target in zip(lines, best)))
    files = ("--hypotheses", tmp_path / "found.txt", "--json", tmp_path / "scores.json")
    run("evaluate", tmp_path / "ours", tmp_path / "test.tsv", *files)
    assert json.loads((tmp_path / "scores.json").read_text())["options"]["language"] == "yy"  # as the checkpoint says
    assert (tmp_path / "found.txt").read_text().splitlines() == best
    assert AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "ours").config.decoder_start_token_id == 2


def test_bad_files_are_one_line(tmp_path, capsys):
    path = tmp_path / "model.pt"
    for content, message in {
        b"no checkpoint": "it begins with b'no checkpoint'",
        b"": "it is empty",
        checkpoint_of(tmp_path / "fairseq").read_bytes()[:2000]: "it is cut off or damaged",
    }.items():
        path.write_bytes(content)
        with pytest.raises(SystemExit) as ended:
            run("convert-fairseq", path, "--out", tmp_path / "ours")
        assert ended.value.code == 2
        printed = capsys.readouterr().err
        assert printed == f"dynaconv: error: {path} is no whole checkpoint of PyTorch: {message}\n"
    assert not (tmp_path / "ours").exists()
    with pytest.raises(SystemExit):
        run("convert-fairseq", path, "--out", "/proc/ours")
    assert "/proc/ours cannot be written, /proc does not let it" in capsys.readouterr().err
