"""Reading, cleaning and splitting parallel text."""

import gzip
import lzma
import re

import pytest

from dynaconv.data import DataConfig
from dynaconv.data.corpus import load_parallel, near_duplicate_key, read_parallel
from dynaconv.data.debian import align_descriptions, read_descriptions

from ..conftest import toy_pairs, write_tsv

PAIRS = toy_pairs(300)


def config(tmp_path, pairs=None, **options):
    path = write_tsv(tmp_path / "train.tsv", PAIRS if pairs is None else pairs)
    return DataConfig(**({"train": str(path), "valid_size": 20, "test_size": 30} | options))


def test_held_out_pairs_are_whole_and_apart(tmp_path):
    corpus = load_parallel(config(tmp_path), tmp_path)
    assert {split: len(text.source) for split, text in corpus.items()} == {"train": 250, "valid": 20, "test": 30}
    everything = [pair for text in corpus.values() for pair in zip(*text, strict=True)]
    assert sorted(everything) == sorted(PAIRS)
    assert load_parallel(config(tmp_path), tmp_path) == corpus
    assert load_parallel(config(tmp_path, seed=2), tmp_path)["test"] != corpus["test"]


def test_near_duplicates_of_held_out_pairs_are_dropped(tmp_path):
    """Every pair stands twice, with other numbers and names; the twin of a held-out pair is not for training."""
    pairs = PAIRS + [(f"{source.upper()} 42!", f"{target} v1.2 (lib{i})") for i, (source, target) in enumerate(PAIRS)]
    corpus = load_parallel(config(tmp_path, pairs), tmp_path)
    held_out = {near_duplicate_key(line) for split in ("valid", "test") for line in corpus[split].target}
    assert not held_out & {near_duplicate_key(line) for line in corpus["train"].target}
    control = load_parallel(config(tmp_path, pairs, near_duplicates=True), tmp_path)
    assert held_out & {near_duplicate_key(line) for line in control["train"].target}


def test_near_duplicates_of_given_files_are_dropped(tmp_path):
    test = write_tsv(tmp_path / "test.tsv", [(f"{source}.", target) for source, target in PAIRS[:50]])
    corpus = load_parallel(config(tmp_path, test=str(test)), tmp_path)
    assert corpus["test"].target == [target for _, target in PAIRS[:50]]
    assert len(corpus["train"].source) == 300 - 20 - len({*PAIRS[:50]} - {*zip(*corpus["valid"], strict=True)})


def test_key_of_text_without_words():
    assert near_duplicate_key("3.14") != near_duplicate_key("2.72")
    assert near_duplicate_key("Die Datei »a.txt« fehlt!") == near_duplicate_key("die Datei b.txt fehlt")


def test_cleaning(tmp_path):
    bad = [("", "empty"), ("a " * 200, "b " * 200), ("kurz", "a very long translation of a short word"), PAIRS[0]]
    spaced = (" viele \u00a0 Leerzeichen ", "many  spaces")
    corpus = load_parallel(config(tmp_path, [*PAIRS, *bad, spaced], valid_size=1, test_size=1), tmp_path)
    everything = [pair for text in corpus.values() for pair in zip(*text, strict=True)]
    assert sorted(everything) == sorted([*PAIRS, ("viele Leerzeichen", "many spaces")])


@pytest.mark.parametrize(("suffix", "opener"), [(".gz", gzip.open), (".xz", lzma.open)])
def test_compressed_files(tmp_path, suffix, opener):
    path = tmp_path / f"train.tsv{suffix}"
    with opener(path, "wt", encoding="utf-8") as file:
        file.write("eins\tone\textra\n")
    assert read_parallel(str(path), DataConfig()) == (["eins"], ["one"])
    assert read_parallel(str(path), DataConfig(source_column=2, target_column=0)) == (["extra"], ["eins"])


def test_aligned_files(tmp_path):
    (tmp_path / "corpus.de").write_text("eins\nzwei\n")
    (tmp_path / "corpus.en").write_text("one\ntwo\n")
    data = DataConfig(format="text")
    assert read_parallel(str(tmp_path / "corpus"), data) == (["eins", "zwei"], ["one", "two"])
    (tmp_path / "corpus.en").write_text("one\n")
    with pytest.raises(ValueError, match=r"corpus\.de has 2 lines but .*corpus\.en has 1: they must be aligned"):
        read_parallel(str(tmp_path / "corpus"), data)


def test_datasets(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"translation": {"de": "eins", "en": "one"}}\n{"translation": {"de": "zwei", "en": "two"}}\n')
    data = DataConfig(format="huggingface")
    assert read_parallel(str(path), data) == (["eins", "zwei"], ["one", "two"])
    assert read_parallel(f"{path}@train[:1]", data) == (["eins"], ["one"])
    with pytest.raises(ValueError, match="has no fr; it has de, en"):
        read_parallel(str(path), DataConfig(format="huggingface", source_lang="fr"))


ERRORS = {
    "one column": (b"eins\tone\nzwei\n", "line 2: expected at least 2 tab-separated columns, found 1"),
    "not UTF-8": (b"eins\tone\nz\xfcrich\tZurich\n", "line 2: not valid UTF-8"),
    "empty": (b"", "the corpus is empty after cleaning (0 pairs read; dropped: none)"),
    "nothing left": (b"eins\t\n", "the corpus is empty after cleaning (1 pairs read; dropped: 1 empty)"),
    "too few": (b"eins\tone\nzwei\ttwo\n", "cannot hold out 20 of 2 pairs: lower data.valid_size and data.test_size"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_text_that_cannot_be_used(case, tmp_path):
    content, message = ERRORS[case]
    data = config(tmp_path)
    (tmp_path / "train.tsv").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        load_parallel(data, tmp_path)


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*absent\.tsv"):
        load_parallel(DataConfig(train=str(tmp_path / "absent.tsv")), tmp_path)
    with pytest.raises(ValueError, match=r"data\.train must be given for data\.format tsv"):
        load_parallel(DataConfig(), tmp_path)


GERMAN = """Package: one
Description-md5: aa
Description-de: Ein Programm
 Der erste Satz. Der zweite Satz
 geht weiter.
 .
  * eine Liste
 .
 Ende.

Package: two
Description-md5: bb
Description-de: Noch eines
 Nur ein Absatz.
"""
ENGLISH = """Package: one
Description-md5: aa
Description-en: a program
 The first sentence. The second sentence
 goes on.
 .
  * a list
 .
 The end.

Package: two
Description-md5: bb
Description-en: another one
 One paragraph.
 .
 And another.

Package: three
Description-md5: cc
Description-en: not translated
"""


def test_package_descriptions(tmp_path):
    files = [tmp_path / name for name in ("Translation-de", "Translation-en")]
    for path, content in zip(files, (GERMAN, ENGLISH), strict=True):
        path.write_text(content, encoding="utf-8")
    assert align_descriptions([files[0]], [files[1]], "de") == [
        ("Ein Programm", "a program"),
        ("Der erste Satz.", "The first sentence."),
        ("Der zweite Satz geht weiter.", "The second sentence goes on."),
        ("Ende.", "The end."),
    ]


def test_package_descriptions_elsewhere(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"pairs en with de, fr, it, es; got de-fr"):
        read_descriptions("de", "fr", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="needs apt-get, which this system does not have"):
        read_descriptions("de", "en", tmp_path)
    (tmp_path / "apt-get").write_text("#!/bin/sh\necho 'E: no network' >&2\nexit 100\n")
    (tmp_path / "apt-get").chmod(0o755)
    with pytest.raises(RuntimeError, match="apt-get update failed: E: no network"):
        read_descriptions("de", "en", tmp_path)
    assert not list(tmp_path.glob("descriptions*"))
