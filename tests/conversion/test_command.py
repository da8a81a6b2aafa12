"""`dynaconv convert-fairseq`, and the other commands on what it wrote."""

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
    options = ("--source-lang", "de", "--target-lang", "en", "--hypotheses", tmp_path / "found.txt")
    run("evaluate", tmp_path / "ours", tmp_path / "test.tsv", *options)
    assert (tmp_path / "found.txt").read_text().splitlines() == best
    assert AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "ours").config.decoder_start_token_id == 2


def test_bad_files_are_one_line(tmp_path, capsys):
    path = tmp_path / "model.pt"
    path.write_bytes(b"no checkpoint")
    with pytest.raises(SystemExit) as ended:
        run("convert-fairseq", path, "--out", tmp_path / "ours")
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith(f"dynaconv: error: {path} is no whole checkpoint of PyTorch")
    assert message.count("\n") == 1
    assert not (tmp_path / "ours").exists()
