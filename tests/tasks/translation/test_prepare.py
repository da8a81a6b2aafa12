"""Prepared corpora and their cache."""

import json
import os
import pickle
import signal
import subprocess
import sys

import numpy as np
import pytest

from dynaconv.data import store
from dynaconv.data.sources import debian
from dynaconv.data.tokenizer import TokenizerConfig
from dynaconv.seq2seq import corpus as module
from dynaconv.seq2seq.corpus import prepare
from dynaconv.tasks.translation.recipe import DataConfig

from ...conftest import toy_pairs, write_tsv

VOCABULARY = TokenizerConfig(vocab_size=120)


@pytest.fixture
def config(tmp_path) -> DataConfig:
    return DataConfig(train=str(write_tsv(tmp_path / "train.tsv", toy_pairs(200))), valid_size=10, test_size=20)


def prepared(folder) -> list[str]:
    return sorted(path.name for path in (folder / "prepared").iterdir() if path.is_dir())


@pytest.mark.parametrize("joint", [True, False])
def test_arrays_hold_the_text(tmp_path, config, joint):
    corpus = prepare(config, TokenizerConfig(vocab_size=120, joint=joint), tmp_path / "cache")
    assert (len(corpus.train), len(corpus.valid), len(corpus.test)) == (170, 10, 20)
    assert corpus.joint == joint
    for name, text in corpus.text.items():
        split = getattr(corpus, name)
        for side, lines in text.items():
            for i, line in enumerate(lines):
                ids = split[i][side].tolist()
                assert ids == corpus.tokenizers[side](line)["input_ids"]
                assert split.lengths[side][i] == len(ids)
                assert ids[-1] == 2
    assert corpus.train[0]["target"].dtype == np.uint16
    assert corpus.train.lengths["source"].dtype == np.int32
    assert corpus.directory.parent == tmp_path / "cache" / "prepared"


def test_pickled_datasets_are_small_and_equal(tmp_path, config):
    train = prepare(config, VOCABULARY, tmp_path).train
    data = pickle.dumps(train)
    assert len(data) < 500
    assert pickle.loads(data)[3]["target"].tolist() == train[3]["target"].tolist()


def test_second_call_reads_the_cache(tmp_path, config, monkeypatch):
    first = prepare(config, VOCABULARY, tmp_path)
    monkeypatch.setattr(module, "load_pairs", lambda *_: pytest.fail("read again"))
    second = prepare(config, VOCABULARY, tmp_path)
    assert second.directory == first.directory
    assert second.text == first.text


def test_any_change_of_input_prepares_again(tmp_path, config):
    prepare(config, VOCABULARY, tmp_path)
    prepare(config, TokenizerConfig(vocab_size=100), tmp_path)
    config.seed = 2
    prepare(config, VOCABULARY, tmp_path)
    os.utime(config.train, ns=(1, 1))
    prepare(config, VOCABULARY, tmp_path)
    assert len(prepared(tmp_path)) == 4


def write_dataset(path, pairs):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list([{"de": de, "en": en} for de, en in pairs]).save_to_disk(path)


def write_rows(path, pairs):
    rows = [json.dumps({"de": de, "en": en}) for de, en in pairs]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")


def write_text(folder, pairs):
    for side, language in enumerate(("de", "en")):
        (folder / f"news.{language}").write_text("".join(pair[side] + "\n" for pair in pairs), encoding="utf-8")


def write_folder(folder, pairs, config):
    """A dataset whose README names a configuration and where its files lie."""
    (folder / "deep").mkdir(parents=True, exist_ok=True)
    header = f"configs:\n- config_name: {config}\n  data_files: deep/*.jsonl\n"
    (folder / "README.md").write_text(f"---\n{header}---\n", encoding="utf-8")
    write_rows(folder / "deep" / "rows.jsonl", pairs)


def write_descriptions(folder, pairs):
    (folder / "debian").mkdir(exist_ok=True)
    path = folder / "debian" / f"descriptions-{debian._ALIGNMENT}.de-en.json"
    path.write_text(json.dumps(pairs), encoding="utf-8")


SOURCES = {
    "tsv": ("tsv", "train.tsv", lambda folder, pairs: write_tsv(folder / "train.tsv", pairs)),
    "tsv named as a dataset would be": ("tsv", "a@b:c", lambda folder, pairs: write_tsv(folder / "a@b:c", pairs)),
    "text": ("text", "news", write_text),
    "huggingface file": (
        "huggingface",
        "rows.jsonl@train",
        lambda folder, pairs: write_rows(folder / "rows.jsonl", pairs),
    ),
    "huggingface saved": ("huggingface", "saved", lambda folder, pairs: write_dataset(folder / "saved", pairs)),
    "huggingface folder": (
        "huggingface",
        "folder",
        lambda folder, pairs: write_folder(folder / "folder", pairs, "default"),
    ),
    "huggingface folder with a configuration": (
        "huggingface",
        "folder:de-en@train",
        lambda folder, pairs: write_folder(folder / "folder", pairs, "de-en"),
    ),
    "debian": ("debian", None, write_descriptions),
}


@pytest.mark.parametrize("source", SOURCES)
def test_a_change_of_the_files_of_any_source_prepares_again(tmp_path, monkeypatch, source):
    if source.startswith("huggingface"):
        datasets = pytest.importorskip("datasets")
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
        datasets.disable_progress_bars()
    kind, name, write = SOURCES[source]
    config = DataConfig(format=kind, train=name and str(tmp_path / name), valid_size=5, test_size=5)
    before, after = toy_pairs(60), toy_pairs(60, seed=1)
    write(tmp_path, before)
    first = prepare(config, VOCABULARY, tmp_path)
    assert prepare(config, VOCABULARY, tmp_path).directory == first.directory
    write(tmp_path, after)
    second = prepare(config, VOCABULARY, tmp_path)
    for corpus, pairs in ((first, before), (second, after)):
        assert {pair for text in corpus.text.values() for pair in zip(*text.values(), strict=True)} <= set(pairs)
    assert len(prepared(tmp_path)) == 2


def test_held_out_files_count_too(tmp_path, config):
    config.valid = str(write_tsv(tmp_path / "valid.tsv", toy_pairs(10, seed=2)))
    config.test = str(write_tsv(tmp_path / "test.tsv", toy_pairs(10, seed=3)))
    prepare(config, VOCABULARY, tmp_path)
    for path in (config.valid, config.test):
        os.utime(path, ns=(1, 1))
        prepare(config, VOCABULARY, tmp_path)
    assert len(prepared(tmp_path)) == 3


def test_default_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DYNACONV_CACHE", str(tmp_path / "a"))
    assert store.cache_directory() == tmp_path / "a"
    monkeypatch.delenv("DYNACONV_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert store.cache_directory() == tmp_path / "dynaconv"


def test_an_error_leaves_nothing(tmp_path, config):
    with pytest.raises(ValueError, match=r"vocab_size 10 is too small"):
        prepare(config, TokenizerConfig(vocab_size=10), tmp_path)
    assert prepared(tmp_path) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from dynaconv.data.tokenizer import TokenizerConfig
from dynaconv.seq2seq.corpus import prepare
from dynaconv.tasks.translation.recipe import DataConfig
Path.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # between the last write and the rename
prepare(DataConfig(train=sys.argv[1], valid_size=10, test_size=20), TokenizerConfig(vocab_size=120), Path(sys.argv[2]))
"""


def test_killed_before_the_rename(tmp_path, config):
    killed = subprocess.run([sys.executable, "-c", KILLED, config.train, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    (leftover,) = prepared(tmp_path)
    assert ".incomplete-" in leftover
    corpus = prepare(config, VOCABULARY, tmp_path)
    assert len(corpus.train) == 170
    assert prepared(tmp_path) == [corpus.directory.name], "the leftover is cleaned up"


PARALLEL = KILLED.replace("Path.rename = ", "_ = ") + "print('datasets' in sys.modules)"


def test_two_processes_at_once(tmp_path, config):
    command = [sys.executable, "-c", PARALLEL, config.train, str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs == ["False\n"] * 2, "datasets was imported for a tsv file"
    assert len(prepared(tmp_path)) == 1


@pytest.mark.parametrize("name", ["train.source.npy", "valid.target.offsets.npy"])
@pytest.mark.parametrize("size", [0, 100, 200])
def test_a_damaged_cache_is_noticed(tmp_path, config, name, size):
    folder = prepare(config, VOCABULARY, tmp_path).directory
    path = folder / name
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=f"{name} is damaged .*: delete {folder}"):
        prepare(config, VOCABULARY, tmp_path)
