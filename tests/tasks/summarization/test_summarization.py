"""Summaries: what is read of a document, ROUGE, and the commands from training to scores."""

import json
from dataclasses import replace

import pytest

from dynaconv.data.tokenizer import TokenizerConfig
from dynaconv.seq2seq.corpus import prepare, read_pairs
from dynaconv.tasks.summarization.evaluation import first_sentences, first_words, rouge, rouge_l
from dynaconv.tasks.summarization.recipe import DataConfig, Recipe
from dynaconv.tasks.summarization.summarizer import Summarizer
from dynaconv.training.recipe import load_recipe

from ...conftest import run_cli, toy_pairs, write_recipe, write_tsv

DOCUMENTS, SUMMARIES = map(list, zip(*toy_pairs(60, seed=3)))


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("summaries")
    data = {"max_source_tokens": 6, "max_target_tokens": 9}
    train = {"max_steps": 60, "save_steps": 60, "eval_steps": 60, "warmup_steps": 10, "average_last": 1}
    decoding = {"beams": 3, "no_repeat_ngram_size": 3, "min_length": 2, "max_length": 8}
    return write_recipe(folder, task="summarization", data=data, train=train, decoding=decoding)


@pytest.fixture(scope="module")
def run(recipe_file, cache):
    folder = recipe_file.parent / "run"
    result = run_cli("train", recipe_file, "--output", folder, cache=cache)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "ROUGE-L" in result.stdout
    assert f"dynaconv evaluate {folder} {folder}/test.tsv" in result.stdout
    return folder


def test_documents_and_summaries_are_cut(recipe_file, tmp_path):
    recipe = load_recipe(recipe_file, Recipe)
    corpus = prepare(recipe.data, recipe.tokenizer, tmp_path)
    assert corpus.train.lengths["source"].max() == 6
    assert corpus.train.lengths["target"].max() == 9
    whole = prepare(replace(recipe.data, max_source_tokens=400, max_target_tokens=400), recipe.tokenizer, tmp_path)
    assert whole.train.lengths["source"].max() > 6
    row = next(i for i, length in enumerate(whole.train.lengths["source"]) if length > 6)
    ids = whole.train[row]["source"].tolist()
    assert corpus.train[row]["source"].tolist() == [*ids[:5], ids[-1]]


def test_the_end_of_a_document_has_no_effect(run):
    summarizer = Summarizer.from_pretrained(run, "cpu")
    assert summarizer.model.config.max_source_positions == 6
    long = max(DOCUMENTS, key=len)
    [[whole]], [[longer]] = (summarizer.generate([text]) for text in (long, f"{long} und noch mehr davon"))
    assert whole == longer
    assert summarizer.generate(["", "drei"])[0][0].text == ""


def test_the_recipe_says_how_to_search(run):
    summarizer = Summarizer.from_pretrained(run, "cpu")
    explicit = {"beams": 3, "no_repeat_ngram_size": 3, "min_length": 2, "max_length": 8, "length_penalty": 1.0}
    assert summarizer.generate(DOCUMENTS) == summarizer.generate(DOCUMENTS, **explicit)
    ids = [summarizer.tokenizers["target"](best[0].text)["input_ids"] for best in summarizer.generate(DOCUMENTS)]
    assert max(map(len, ids)) <= 9
    assert summarizer.generate(DOCUMENTS, min_length=0, max_length=2) != summarizer.generate(DOCUMENTS)


def test_on_the_command_line(run, cache, tmp_path):
    (tmp_path / "documents.txt").write_text("".join(f"{line}\n" for line in DOCUMENTS[:5]), encoding="utf-8")
    result = run_cli("summarize", run, tmp_path / "documents.txt", cache=cache)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 5
    scores, lines = tmp_path / "scores.json", tmp_path / "lines.txt"
    options = ("--json", scores, "--hypotheses", lines, "--samples", 2, "--lead", 2)
    result = run_cli("evaluate", run, run / "test.tsv", *options, cache=cache)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("reference") == 2
    record = json.loads(scores.read_text())
    assert list(record["scores"])[:2] == ["model", "first 2 sentences"]
    assert record["search"]["no_repeat_ngram_size"] == 3
    text = read_pairs(str(run / "test.tsv"), DataConfig())
    found = rouge(lines.read_text().splitlines(), text["target"])
    assert record["scores"]["model"] == found
    assert found["ROUGE-1"]["low"] < found["ROUGE-1"]["score"] < found["ROUGE-1"]["high"]


@pytest.mark.parametrize("command", ["translate", "score"])
def test_a_model_for_another_task_is_refused(run, cache, command, tmp_path):
    write_tsv(tmp_path / "pairs.tsv", toy_pairs(1))
    result = run_cli(command, run, tmp_path / "pairs.tsv", cache=cache)
    assert result.returncode == 2
    assert f"the model in {run} was trained for summarization, not for translation" in result.stderr


def test_moses_needs_languages_and_says_so_before_it_reads(tmp_path):
    with pytest.raises(ValueError, match="tokenizer.moses needs the languages"):
        prepare(DataConfig(train="nowhere.tsv"), TokenizerConfig(moses=True), tmp_path)


def test_debian_is_refused():
    with pytest.raises(ValueError, match="data.format debian is for translation"):
        prepare(DataConfig(format="debian"), Recipe().tokenizer)


def test_rouge():
    """Values by hand: F1 of unigrams, of bigrams, and of the union of the longest common subsequences by sentences."""
    found = rouge(["the cat sat. dogs ran home"], ["the cat was sitting. a dog ran"])
    assert found["ROUGE-1"]["score"] == pytest.approx(100 * 2 * (4 / 6 * 4 / 7) / (4 / 6 + 4 / 7), abs=0.01)
    assert found["ROUGE-2"]["score"] == pytest.approx(100 * 2 * (2 / 5 * 2 / 6) / (2 / 5 + 2 / 6), abs=0.01)
    assert found["ROUGE-L"]["score"] == found["ROUGE-1"]["score"]
    swapped = rouge(["dogs ran home. the cat sat"], ["the cat was sitting. a dog ran"])
    assert swapped["ROUGE-L"] == found["ROUGE-L"], "the order of sentences has no effect: it is of the summary"
    assert rouge_l(SUMMARIES[:9], SUMMARIES[1:10]) == pytest.approx(
        rouge(SUMMARIES[:9], SUMMARIES[1:10])["ROUGE-L"]["score"], abs=0.01
    )


def test_the_interval_shrinks_with_the_number_of_documents():
    width = [
        (entry := rouge(SUMMARIES[:count], SUMMARIES[1 : count + 1])["ROUGE-1"])["high"] - entry["low"]
        for count in (5, 50)
    ]
    assert 2 < width[0] / width[1] < 5


def test_what_needs_no_model():
    text = ["One sentence. Two, e.g. this! Three? Four.", "No end"]
    assert first_sentences(text, 2) == ["One sentence. Two, e.g.", "No end"]
    assert first_words(text, 3) == ["One sentence. Two,", "No end"]
