"""Reading and cleaning parallel text."""

import bz2
import gzip
import json
import logging
import lzma
import sys

import pytest

from dynaconv.data import DataConfig, load_parallel, read_parallel
from tests.conftest import toy_pairs, write_tsv

OPENERS = {"": open, ".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


@pytest.mark.parametrize("suffix", OPENERS)
def test_tsv_is_read_as_it_is(tmp_path, suffix):
    path = tmp_path / f"text.tsv{suffix}"
    with OPENERS[suffix](path, "wb") as file:
        file.write("\ufeffid1\t a  b \tx\r\nid2\t\tÜ\u2028y\nid1\t a  b \tx".encode())
    config = DataConfig(source_column=1, target_column=2)
    assert read_parallel(str(path), config) == ([" a  b ", "", " a  b "], ["x", "Ü\u2028y", "x"])
    assert read_parallel(str(path), DataConfig(source_column=2, target_column=0)).target == ["id1", "id2", "id1"]


def test_text_files(tmp_path):
    (tmp_path / "news.de").write_text("eins\nzwei\n", encoding="utf-8")
    (tmp_path / "news.en").write_text("one\ntwo\n", encoding="utf-8")
    config = DataConfig(format="text")
    assert read_parallel(str(tmp_path / "news"), config) == (["eins", "zwei"], ["one", "two"])
    (tmp_path / "news.en").write_text("one\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"news\.de has 2 lines but .*news\.en has 1: they must be aligned"):
        read_parallel(str(tmp_path / "news"), config)
    with pytest.raises(FileNotFoundError, match=r"no file .*other\.de"):
        read_parallel(str(tmp_path / "other"), config)


def test_broken_tsv_files(tmp_path):
    path = tmp_path / "text.tsv"
    config = DataConfig()
    with pytest.raises(FileNotFoundError, match=r"no file .*text\.tsv: check"):
        read_parallel(str(path), config)
    path.write_text("a\tb\nonly one\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"text\.tsv, line 2: expected at least 2 tab-separated columns, found 1"):
        read_parallel(str(path), config)
    with pytest.raises(ValueError, match=r"text\.tsv, line 1: expected at least 5 tab-separated columns, found 2"):
        read_parallel(str(path), DataConfig(target_column=4))
    with pytest.raises(ValueError, match="counted from 0, got -1 and 1"):
        read_parallel(str(path), DataConfig(source_column=-1))
    path.write_bytes(b"a\tb\ncaf\xe9\tb\n")
    with pytest.raises(ValueError, match=r"text\.tsv, line 2: not valid UTF-8"):
        read_parallel(str(path), config)


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz"])
def test_damaged_files(tmp_path, suffix):
    path = tmp_path / f"text.tsv{suffix}"
    with OPENERS[suffix](path, "wb") as file:
        file.writelines(f"{i}\t{i * i}\n".encode() for i in range(1000))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=rf"text\.tsv{suffix} cannot be read as a {suffix} file"):
        read_parallel(str(path), DataConfig())
    path.write_text("plain\ttext\n", encoding="utf-8")
    with pytest.raises(ValueError, match=rf"text\.tsv{suffix} cannot be read as a {suffix} file"):
        read_parallel(str(path), DataConfig())


def test_cleaning_drops_and_counts(tmp_path, caplog):
    good = toy_pairs(20)
    bad = [("", "empty"), ("   ", "empty"), ("leer", ""), (" ".join("abcdefghijkl"), " ".join("mnopqrstuvwx"))]
    bad += [("kurz", "a b c d e"), ("not translated at all", "not translated at all")]
    bad += [good[0], (good[1][0], "another target without news"), ("wieder ein anderer Satz", good[2][1])]
    kept = [
        ("GNOME", "GNOME"),
        ("kurz genug", "a b c d e f"),
        ("  Ko\u0308nig \u00a0 Drosselbart ", "King  Thrushbeard"),
    ]
    path = write_tsv(tmp_path / "train.tsv", good + bad + kept)
    with caplog.at_level(logging.INFO, "dynaconv"):
        splits = load_parallel(DataConfig(train=str(path), valid_size=1, test_size=1, max_words=10))
    pairs = {pair for text in splits.values() for pair in zip(*text, strict=True)}
    assert pairs == {*good, *kept[:2], ("König Drosselbart", "King Thrushbeard")}
    for part in (
        "kept 23 of 32 pairs", "3 empty", "1 longer than 10 words", "1 sides differ by more than 1.5 x + 3 words",
        "1 untranslated", "3 repeated",
    ):  # fmt: skip
        assert part in caplog.text


def test_nothing_left_after_cleaning(tmp_path):
    path = write_tsv(tmp_path / "train.tsv", [("", "a"), ("b", "c d e f g h")])
    with pytest.raises(ValueError, match=r"empty after cleaning \(2 pairs read; dropped: 1 empty, 1 sides differ"):
        load_parallel(DataConfig(train=str(path)))
    path.write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match=r"empty after cleaning \(0 pairs read; dropped: none\)"):
        load_parallel(DataConfig(train=str(path)))
    full = str(write_tsv(tmp_path / "full.tsv", toy_pairs(20)))
    with pytest.raises(ValueError, match=r"data\.test .*train\.tsv has no lines"):
        load_parallel(DataConfig(train=full, test=str(path), valid_size=1))


def test_no_training_text_named():
    with pytest.raises(ValueError, match=r"data\.train must be given for data\.format tsv"):
        load_parallel(DataConfig())
    with pytest.raises(
        ValueError, match=r"data\.format debian reads no data\.train, got x\.tsv: set data\.format to tsv"
    ):
        load_parallel(DataConfig(format="debian", train="x.tsv"))


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    module = pytest.importorskip("datasets")
    monkeypatch.setattr(module.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    module.disable_progress_bars()
    return module


def test_huggingface(tmp_path, datasets):
    rows = [{"de": "eins", "en": "one", "id": 1}, {"de": None, "en": "two", "id": 2}]
    expected = (["eins", ""], ["one", "two"])
    config = DataConfig(format="huggingface")
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert read_parallel(str(path), config) == expected
    nested = datasets.Dataset.from_list([{"translation": {"de": row["de"], "en": row["en"]}} for row in rows])
    nested.save_to_disk(tmp_path / "nested")
    assert read_parallel(str(tmp_path / "nested"), config) == expected
    datasets.DatasetDict(validation=nested).save_to_disk(tmp_path / "splits")
    assert read_parallel(f"{tmp_path / 'splits'}@validation", config) == expected
    with pytest.raises(ValueError, match=r"splits has no split train: name one as NAME@SPLIT"):
        read_parallel(str(tmp_path / "splits"), config)
    with pytest.raises(ValueError, match=r"rows\.jsonl has no fr; it has de, en, id: set data\.source_lang"):
        read_parallel(str(path), DataConfig(format="huggingface", target_lang="fr"))
    with pytest.raises(ValueError, match=r'cannot read dataset .*rows\.jsonl@dev: Unknown split "dev"'):
        read_parallel(f"{path}@dev", config)
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.json"):
        read_parallel(str(tmp_path / "none.json"), config)


def test_huggingface_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r'pip install "dynaconv\[datasets\]"'):
        read_parallel("name", DataConfig(format="huggingface"))
