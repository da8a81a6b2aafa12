"""Translating much text: as its turn comes, as it is typed, until it is interrupted."""

import io
import os
import signal
import subprocess
import sys
import threading

import pytest

from dynaconv.data.batching import AHEAD
from dynaconv.seq2seq.report import generate_files
from dynaconv.tasks.translation.translator import Translator

from ...conftest import start_cli, toy_pairs

LINES = [line for source, _ in toy_pairs(240, seed=9) for line in (source, "")]
SMALL = ["--max-tokens", "40", "--beams", "2"]  # batches of 20 tokens, of which 32 are read ahead


@pytest.fixture(scope="module")
def translator(toy_run):
    return Translator.from_pretrained(toy_run, "cpu")


def start(toy_run, *options, **pipes):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **pipes}
    return start_cli("translate", toy_run, "--device", "cpu", *options, **pipes)


@pytest.fixture(scope="module")
def whole(toy_run, tmp_path_factory) -> list[str]:
    path = tmp_path_factory.mktemp("text") / "lines.txt"
    path.write_text("\n".join(LINES) + "\n", encoding="utf-8")
    output, messages = start(toy_run, path, *SMALL).communicate(timeout=120)
    assert f"{len(LINES)}/{len(LINES)}" in messages  # the progress bar knows how many lines a file has
    return output.splitlines()


def test_parts_change_nothing(translator, whole):
    options = {"max_tokens": 40, "beams": 2, "nbest": 2}
    expected = [line for text in LINES for line in translator.generate([text], **options)]
    parts = list(translator.stream(LINES, **options))
    assert len(parts) > 30
    found = [hypotheses for part in parts for hypotheses in part]
    assert [[h.text for h in hypotheses] for hypotheses in found] == [[h.text for h in row] for row in expected]
    scores = [[h.score for h in hypotheses] for hypotheses in found]
    assert scores == [pytest.approx([h.score for h in row], abs=1e-4) for row in expected]
    assert whole == [row[0].text for row in expected]


@pytest.mark.parametrize("beams", [1, 3])
def test_a_line_does_not_depend_on_its_batch(translator, monkeypatch, beams):
    """Also where a translation does not end by itself: it is cut where it would be if the line were alone."""
    generation = translator.model.generation_config
    monkeypatch.setattr(generation, "suppress_tokens", [generation.eos_token_id], raising=False)
    lines = ["Hunde", "zwei rote Hunde sehen drei blaue Katzen " * 3]
    together = translator.generate(lines, beams=beams, nbest=beams)
    for line, found in zip(lines, together):
        [alone] = translator.generate([line], beams=beams, nbest=beams)
        assert [h.text for h in found] == [h.text for h in alone]
        assert [h.score for h in found] == pytest.approx([h.score for h in alone], abs=1e-4)
    words = [len(found[0].text.split()) for found in together]
    assert words[1] > 40 > words[0]  # both ran away


def test_lines_come_as_their_turn_comes_and_little_is_read_ahead(translator):
    read = []
    lines = (read.append(line) or line for line in LINES)
    done, most = 0, 0
    for part in translator.stream(lines, max_tokens=40, beams=2):
        assert part  # every batch ends the line that has waited longest
        if done == 0:
            assert len(part) < len(LINES) / 4
        done += len(part)
        most = max(most, len(read) - done)
    assert done == len(LINES)
    assert most < 3 * AHEAD * 20 / 8  # lines have 8 tokens and more, every second one is empty
    blank = translator.stream(("" for _ in range(10**9)), max_tokens=40, beams=2)
    assert len(next(blank)) == AHEAD * 20


def test_arguments_are_checked_before_anything_is_read(translator):
    lines = (pytest.fail("read") for _ in range(1))
    with pytest.raises(ValueError, match="nbest must be in 1..beams; got nbest = 3, beams = 2"):
        next(translator.stream(lines, nbest=3, beams=2))
    with pytest.raises(ValueError, match="length_penalty must be a finite number; got nan"):
        next(translator.stream(lines, length_penalty=float("nan")))
    with pytest.raises(TypeError, match="lines must be a list of strings; got a string: give"):
        next(translator.stream("zwei rote Hunde"))


@pytest.mark.parametrize("from_file", [True, False])
def test_interrupted_after_the_first_lines(toy_run, tmp_path, whole, from_file):
    """What was written is a prefix of the uninterrupted output, in whole lines."""
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(LINES * 50) + "\n", encoding="utf-8")
    with path.open() as stream:
        process = start(toy_run, *[path][:from_file], *SMALL, stdin=stream)
        first = "".join(process.stdout.readline() for _ in range(3))
        process.send_signal(signal.SIGINT)
        # Not communicate(), which would not see what readline() has read ahead.
        output, messages = process.stdout.read(), process.stderr.read()
        process.wait(60)
    lines = (first + output).splitlines()
    assert process.returncode == 130, messages
    assert "interrupted" in messages
    assert "Traceback" not in messages
    assert (first + output).endswith("\n")
    assert 3 <= len(lines) < len(LINES * 50)
    assert lines == (whole * 50)[: len(lines)]


@pytest.mark.parametrize("nbest", [1, 2])
def test_a_line_is_written_in_one_piece(toy_run, tmp_path, monkeypatch, nbest):
    """Wherever an interruption falls, between two calls of write: what was written ends with a line's end."""
    (tmp_path / "lines.txt").write_text("\n".join(LINES[:4]) + "\n", encoding="utf-8")
    pieces = []

    class Pieces(io.StringIO):
        def write(self, text):
            pieces.append(text)

    monkeypatch.setattr(sys, "stdout", Pieces())
    generate_files(Translator, toy_run, [tmp_path / "lines.txt"], nbest=nbest, beams=2, device="cpu", ensemble=())
    assert len(pieces) == 4 * nbest
    assert all(piece.endswith("\n") and piece.count("\n") == 1 for piece in pieces)


def test_lines_that_are_typed_are_answered(toy_run, whole):
    process = start(toy_run, *SMALL, stdin=subprocess.PIPE)
    timer = threading.Timer(60, process.kill)  # instead of waiting forever where nothing is answered
    timer.start()
    for i in (0, 2):
        process.stdin.write(LINES[i] + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == whole[i] + "\n"
    output, messages = process.communicate(LINES[4])  # the last line has no end
    timer.cancel()
    assert output == whole[4] + "\n"
    assert process.returncode == 0
    assert "3 lines in" in messages


@pytest.mark.parametrize("text", [b"", b"\n", b"a", b"a\nb", b"a\r\n\nb\n", b"x" * 200000 + b"\ny\n"])
def test_lines_of_a_pipe(text):
    from dynaconv.data.lines import arriving_lines

    read, write = os.pipe()
    writer = threading.Thread(target=lambda: (os.write(write, text), os.close(write)))
    writer.start()
    lines = [line for line in arriving_lines(read) if line is not None]
    writer.join()
    os.close(read)
    assert lines == text.removesuffix(b"\n").split(b"\n") if text else lines == []


def test_overlong_lines(translator, caplog):
    line = "zwei rote Hunde sehen drei blaue Katzen " * 60
    beginning = translator.tokenizers["source"].decode(translator.encode("source", line)[: translator.limit - 1])
    lines = ["zwei rote Hunde", line]
    short, whole = translator.generate(lines)
    assert "translated in 3 pieces" in caplog.text
    [[kept], skipped] = translator.generate(lines, overlong="skip")
    assert (kept.text, skipped) == (short[0].text, [("", 0.0)])
    assert f"line 2: skipped, 721 tokens are more than {translator.limit}" in caplog.text
    [[cut]] = translator.generate([line], overlong="truncate")
    assert cut.text == translator.generate([beginning])[0][0].text
    assert len(cut.text) < len(whole[0].text)
    with pytest.raises(ValueError, match="overlong must be one of split, truncate, skip; got 'cut'"):
        translator.generate(lines, overlong="cut")


def test_a_missing_file_is_noticed_at_once(toy_run, tmp_path):
    (tmp_path / "a.txt").write_text(LINES[0] + "\n")
    process = start(toy_run, tmp_path / "a.txt", tmp_path / "absent.txt")
    output, messages = process.communicate(timeout=60)
    assert process.returncode == 2
    assert output == ""
    assert "absent.txt" in messages.splitlines()[-1]
