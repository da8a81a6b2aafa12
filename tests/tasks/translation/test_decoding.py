"""What constrains translations, and what is said about given ones."""

import json
import shutil
import subprocess
from itertools import pairwise
from urllib.request import urlopen

import pytest
import torch

from dynaconv.seq2seq.prefixes import ForcedPrefixes, Prefix, continuing_tokens
from dynaconv.tasks.translation import test_sets
from dynaconv.tasks.translation.evaluation import compare, score
from dynaconv.tasks.translation.test_sets import read_test_set
from dynaconv.tasks.translation.translator import Translator

from ...conftest import run_cli, toy_pairs

PAIRS = toy_pairs(6, seed=9)
SOURCES, TARGETS = map(list, zip(*PAIRS, strict=True))


@pytest.fixture(scope="module")
def translator(toy_run):
    return Translator.from_pretrained(toy_run, "cpu")


def texts(found):
    return [[hypothesis.text for hypothesis in line] for line in found]


@pytest.mark.parametrize("beams", [1, 4])
def test_prefixes(translator, beams):
    free = texts(translator.generate(SOURCES, beams=beams))
    begun = ["", "three", " ".join(free[2][0].split()[:3]), "five white", "two red dogs", free[5][0]]
    found = translator.generate(SOURCES, prefixes=begun, beams=beams)
    for [best], prefix in zip(found, begun, strict=True):
        assert best.text.startswith(prefix)
        assert best.score > -50
    forced = texts(found)
    assert [forced[0], forced[2], forced[5]] == [free[0], free[2], free[5]]
    assert forced[1] != free[1] or free[1][0].startswith("three")
    for line, prefix, alone in zip(SOURCES, begun, found, strict=True):
        [[hypothesis]] = translator.generate([line], prefixes=[prefix], beams=beams)
        assert hypothesis.text == alone[0].text
        assert hypothesis.score == pytest.approx(alone[0].score, abs=1e-4)


def test_a_prefix_that_may_not_be(translator):
    with pytest.raises(
        ValueError, match="a prefix has 2 tokens in a row twice, which no_repeat_ngram_size = 2 forbids"
    ):
        translator.generate(SOURCES[:1], prefixes=["two red dogs two red"], no_repeat_ngram_size=2)
    [[best]] = translator.generate(SOURCES[:1], prefixes=["two red dogs two red"])
    assert best.text.startswith("two red dogs two red")


def test_an_ensemble(translator, toy_run, tmp_path):
    earlier = toy_run / "checkpoint-200"
    both = Translator.from_pretrained(toy_run, "cpu", ensemble=[earlier])
    found = both.generate(SOURCES, beams=3)
    given = [
        model.score(SOURCES, [best.text for [best] in found])
        for model in (translator, Translator.from_pretrained(earlier, "cpu"), both)
    ]
    for [best], (a, count), (b, _), (mean, _) in zip(found, *given):
        assert mean > (a + b) / 2 - 1e-3  # the logarithm of a mean is at least the mean of logarithms
        assert mean / count == pytest.approx(best.score, abs=1e-4)
    assert sum(best.text == target for [best], target in zip(found, TARGETS)) >= len(TARGETS) - 1


def test_an_ensemble_needs_one_vocabulary(toy_run, tmp_path):
    other = shutil.copytree(toy_run / "checkpoint-200", tmp_path / "checkpoint-200")
    content = json.loads((other / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    first, second = list(vocabulary)[10:12]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (other / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"{other} has another source vocabulary than {toy_run}"):
        Translator.from_pretrained(toy_run, "cpu", ensemble=[other])


def test_an_unknown_prefix(translator, caplog):
    translator.generate(SOURCES[:1], prefixes=["猫"])
    assert "prefix '猫': " in caplog.text
    assert "tokens are unknown to the model" in caplog.text


def test_a_prefix_begins_the_first_piece_of_a_long_line(translator):
    [[best]] = translator.generate(["zwei rote Hunde sehen. " * 80], prefixes=["five white"])
    assert best.text.startswith("five white")
    assert best.text.count("five white") == 1


def test_scores_of_forced_and_given_translations_are_those_of_the_search(translator):
    """Each of them: of all beams, at another length penalty, in batches of other sentences."""
    found = translator.generate(SOURCES, beams=3, nbest=3, length_penalty=0.7)
    rows = [(source, h) for source, line in zip(SOURCES, found, strict=True) for h in line]
    given = translator.score([source for source, _ in rows], [h.text for _, h in rows], max_tokens=60)
    for (total, tokens), (_, hypothesis) in zip(given, rows, strict=True):
        assert total / tokens**0.7 == pytest.approx(hypothesis.score, abs=1e-4)
    [[forced]] = translator.generate(SOURCES[:1], prefixes=["five white"], beams=1)
    [(total, tokens)] = translator.score(SOURCES[:1], [forced.text])
    assert total / tokens == pytest.approx(forced.score, abs=1e-4)


def test_lengths_and_repetitions(translator):
    tokenizer = translator.tokenizers["target"]
    lengths = [len(tokenizer(best[0].text)["input_ids"]) for best in translator.generate(SOURCES, max_length=5)]
    assert max(lengths) <= 6  # a text that was cut may be tokenised in another way
    longer = translator.generate(SOURCES, min_length=30, max_length=31)
    assert min(len(tokenizer(best[0].text)["input_ids"]) for best in longer) >= 20
    varied = translator.generate(SOURCES, min_length=30, max_length=31, no_repeat_ngram_size=2)
    for repeated, once in zip(texts(longer), texts(varied), strict=True):
        bigrams = [list(pairwise(text[0].split())) for text in (repeated, once)]
        assert len(set(bigrams[0])) < len(bigrams[0])
        assert len(set(bigrams[1])) == len(bigrams[1])


def test_bad_arguments(translator):
    for options, message in {
        "prefixes must be one for each of the 1 lines; got 2": {"prefixes": ["a", "b"]},
        "a prefix may have 1022 tokens, got": {"prefixes": ["two " * 3000]},
        "max_length must be above min_length = 5; got 5": {"min_length": 5, "max_length": 5},
        "a hypothesis of at most 2 tokens has no room for its prefix": {
            "prefixes": ["five white cats"],
            "max_length": 2,
        },
        "no_repeat_ngram_size must be 0 or 2 and more": {"no_repeat_ngram_size": 1},
        "no_repeat_ngram_size must be a whole number from 0; got -1": {"no_repeat_ngram_size": -1},
        "beams must be a whole number from 1; got 0": {"beams": 0},
        "beams must be a whole number from 1; got '5'": {"beams": "5"},
        "beams must be a whole number from 1; got 2.5": {"beams": 2.5},
        "max_tokens must be a whole number from 1; got 0": {"max_tokens": 0},
        "length_penalty must be a finite number; got 'high'": {"length_penalty": "high"},
    }.items():
        with pytest.raises(ValueError, match=options):
            translator.generate(SOURCES[:1], **message)
    with pytest.raises(ValueError, match="max_tokens must be a whole number from 1; got -1"):
        translator.score(SOURCES[:1], TARGETS[:1], max_tokens=-1)
    with pytest.raises(ValueError, match="targets must be one for each of the 2 sources; got 1"):
        translator.score(SOURCES[:2], TARGETS[:1])
    with pytest.raises(ValueError, match="pair 2: the target has 3001 tokens, the model takes 1023: cut it"):
        translator.score(SOURCES[:2], [TARGETS[0], "two " * 3000])


def test_what_is_no_text(translator):
    with pytest.raises(TypeError, match=r"lines must be a list of strings; got a string: give \['zwei Hunde'\]"):
        translator.generate("zwei Hunde")
    with pytest.raises(TypeError, match="lines must be strings; number 2 is None"):
        translator.generate([SOURCES[0], None])
    with pytest.raises(TypeError, match="prefixes must be a list of strings; got a string"):
        translator.generate(SOURCES[:2], prefixes="two")
    with pytest.raises(TypeError, match="sources must be a list of strings; got a string"):
        translator.score("ab", "cd")
    with pytest.raises(TypeError, match="no option beam: there are length_penalty, beams, "):
        translator.generate(SOURCES, beam=3)


def test_a_prefix_is_of_whole_words(translator):
    """What follows it is another word, also where the model would rather go on with the last one."""
    tokenizer = translator.tokenizers["target"]
    continuing = continuing_tokens(tokenizer)
    tokens = [tokenizer.convert_ids_to_tokens(i) for i in range(len(tokenizer))]
    assert {token for i, token in enumerate(tokens) if continuing[i]} == {
        token for token in tokens if token[0].isalpha() and token not in tokenizer.all_special_tokens
    }
    model, ids = translator.model, tokenizer("two re", add_special_tokens=False)["input_ids"]
    scores = torch.zeros(2, len(tokenizer))
    forced = ForcedPrefixes([Prefix.of("two re", ids), Prefix([], False)], continuing)
    for step in range(len(ids)):
        found = forced(torch.zeros(2, step + 1), scores)
        assert found[0].isfinite().nonzero().tolist() == [[ids[step]]]
        assert found[1].isfinite().all()
    assert torch.equal(forced(torch.zeros(2, len(ids) + 1), scores)[0].isneginf(), continuing)
    assert torch.equal(forced(torch.zeros(2, len(ids) + 2), scores), scores)
    assert model.config.vocab_size == len(tokenizer)
    [[best]] = translator.generate(["zwei rote Hunde"], prefixes=["two re"])
    assert best.text.split()[:2] == ["two", "re"]
    assert not Prefix.of("\u8fd9\u4e2a", [5]).ends_in_word  # written without spaces: what follows may be a word


def test_several_references():
    hypotheses, first = ["the cat sat on the mat"], ["a dog was in the house"]
    alone = score(hypotheses, [first], language="en")
    both = score(hypotheses, [first, hypotheses], language="en")
    assert alone["BLEU"]["score"] < 50
    assert {name: entry["score"] for name, entry in both.items()} == {"BLEU": 100, "chrF": 100, "tokenized BLEU": 100}
    assert "nrefs:2" in both["BLEU"]["signature"]


def test_paired_bootstrap():
    references = [target for _, target in toy_pairs(100, seed=2)]
    worse = [line if n % 3 else line.replace(" ", " the ", 1) for n, line in enumerate(references)]
    result = compare(references, worse, [references], language="en")
    assert result["BLEU"]["score"] == 100
    assert result["BLEU"]["baseline"] < 95
    assert result["BLEU"]["p"] < 0.01
    other = [line if n % 3 != 1 else line.replace(" ", " the ", 1) for n, line in enumerate(references)]
    assert compare(other, worse, [references], language="en")["BLEU"]["p"] > 0.05


def test_published_test_sets(monkeypatch, tmp_path):
    for name, lines in {"source": SOURCES, "first": TARGETS, "second": TARGETS[::-1]}.items():
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    class Published:
        langpairs = {"de-en": None}  # noqa: RUF012 (as in sacrebleu)

        def get_source_file(self, langpair):
            return tmp_path / "source"

        def get_reference_files(self, langpair):
            return [tmp_path / "first", tmp_path / "second"]

    monkeypatch.setattr("sacrebleu.dataset.DATASETS", {"toys": Published()})
    test = read_test_set("toys", None, "de-en", [tmp_path / "first"])
    assert test == (SOURCES, [TARGETS, TARGETS[::-1], TARGETS])
    with pytest.raises(ValueError, match="sacreBLEU has no test set animals; for de-en it has toys"):
        read_test_set("animals", None, "de-en")
    with pytest.raises(ValueError, match="the test set toys is not there for en-de, only for de-en"):
        read_test_set("toys", None, "en-de")
    monkeypatch.setattr(Published, "get_source_file", lambda self, langpair: urlopen("http://127.0.0.1:1"))
    with pytest.raises(RuntimeError, match=r"the test set toys cannot be downloaded .*: check the connection"):
        read_test_set("toys", None, "de-en")
    with pytest.raises(ValueError, match=r"second has 6 lines, but it has 5 sentences: give one line for each"):
        test_sets.read_aligned(tmp_path / "second", 5, "it")


def test_on_the_command_line(toy_run, tmp_path, cache):
    lines = "".join(f"{source}\t{target}\n" for source, target in PAIRS)
    (tmp_path / "valid.tsv").write_text(lines, encoding="utf-8")
    (tmp_path / "more.txt").write_text("".join(f"{target}\n" for target in TARGETS), encoding="utf-8")
    result = run_cli("score", toy_run, tmp_path / "valid.tsv", cache=cache)
    assert result.returncode == 0, result.stderr
    rows = [line.split("\t") for line in result.stdout.splitlines()]
    assert len(rows) == 6
    assert all(float(total) < 0 < int(tokens) for total, tokens in rows)
    (tmp_path / "bad.tsv").write_text("no tab\n", encoding="utf-8")
    result = run_cli("score", toy_run, tmp_path / "valid.tsv", tmp_path / "bad.tsv", cache=cache)
    assert result.returncode == 2
    assert (
        f"{tmp_path / 'bad.tsv'}, line 1: a source in column 0 and a translation in column 1 are expected, counted from "
        "0, with tabs between columns; got 'no tab'" in result.stderr
    )
    assert result.stdout.splitlines() == [] or result.stdout.splitlines() == ["\t".join(row) for row in rows]
    swapped = "".join(f"{target}\tmo:package\t{source}\n" for source, target in PAIRS)
    result = run_cli("score", toy_run, "-", "--source-column", "2", "--target-column", "0", cache=cache,
                     input=swapped.encode())  # fmt: skip
    assert [line.split("\t") for line in result.stdout.splitlines()] == rows
    result = run_cli("evaluate", toy_run, "-", "--source-column", "2", "--target-column", "0", cache=cache,
                     input=swapped.encode())  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "6 sentences" in " ".join(result.stdout.split())
    result = run_cli(
        "evaluate", toy_run, tmp_path / "valid.tsv", "--tune", "--references", tmp_path / "more.txt", "--baseline",
        tmp_path / "more.txt", "--json", tmp_path / "s.json", "--samples", "1", cache=cache,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("reference ") == 2
    assert "paired bootstrap of 1000" in " ".join(result.stdout.split())
    record = json.loads((tmp_path / "s.json").read_text())
    assert len(record["length_penalties"]) == 11
    assert record["search"]["max_length"] == "2 x source + 20"
    assert record["options"]["references"] == [str(tmp_path / "more.txt")]
    assert record["options"]["baseline"] == str(tmp_path / "more.txt")
    assert record["options"]["resamples"] == 1000
    assert record["scores"]["tokenized BLEU"]["signature"].startswith("nrefs:2|case:mixed|")
    assert record["search"]["length_penalty"] in (0, 0.2, 0.4, 0.6, 0.8, 1, 1.2, 1.4, 1.6, 1.8, 2)
    assert record["comparison"]["BLEU"]["baseline"] == 100
    result = run_cli("translate", toy_run, "--prefix", "five white", tmp_path / "more.txt", cache=cache,
                     stdin=subprocess.DEVNULL)  # fmt: skip
    assert all(line.startswith("five white") for line in result.stdout.splitlines())


def test_what_evaluate_refuses(toy_run, tmp_path, cache):
    for arguments, message in (
        (("--samples", "1", toy_run, "x.tsv"), "give the model first: dynaconv evaluate MODEL DATA [options]"),
        ((toy_run, "x.tsv", "--tune", "--length-penalty", "1"), "--tune finds the length penalty"),
        ((toy_run, "x.tsv", "--samples", "-1"), "--samples: input should be greater than or equal to 0; got -1"),
        ((toy_run, "x.tsv", "--json", tmp_path), f"{tmp_path} is a folder: give the name of a file to write"),
        ((toy_run, tmp_path), f"{tmp_path} is a folder: give a file"),
    ):
        result = run_cli("evaluate", *arguments, cache=cache)
        assert result.returncode == 2
        assert message in result.stderr


def test_a_translation_that_is_cut_is_said(translator, caplog):
    translator.generate(SOURCES[:2], max_length=3, max_tokens=1)
    assert caplog.text.count("are cut at their maximal length") == 1  # of two batches
    assert "2 outputs are cut at their maximal length" in caplog.text
    caplog.clear()
    translator.generate(SOURCES[:2])
    assert not caplog.text


def test_moses_words_of_what_a_model_with_such_words_writes():
    """Typographic signs that its vocabulary never had cost it nothing."""
    reference = ["He said \u201cyes\u201d \u2013 it\u2019s true."]
    plain = [normalized for line in reference for normalized in [line.replace("\u201c", '"').replace("\u201d", '"')]]
    written = [plain[0].replace("\u2013", "-").replace("\u2019", "'")]
    assert score(written, [reference], language="en")["tokenized BLEU"]["score"] == pytest.approx(100)
    assert score(written, [reference], language="en")["BLEU"]["score"] < 90
