"""Reading text from files and from datasets."""

import bz2
import gzip
import json
import lzma
import sys

import pytest

from dynaconv.data.sources import files, huggingface

OPENERS = {"": open, ".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


@pytest.mark.parametrize("suffix", OPENERS)
def test_tsv_is_read_as_it_is(tmp_path, suffix):
    path = tmp_path / f"text.tsv{suffix}"
    with OPENERS[suffix](path, "wb") as file:
        file.write("\ufeffid1\t a  b \tx\r\nid2\t\tÜ\u2028y\nid1\t a  b \tx".encode())
    expected = {"source": [" a  b ", "", " a  b "], "target": ["x", "Ü\u2028y", "x"]}
    assert files.read(str(path), {"source": 1, "target": 2}, tmp_path) == expected
    assert files.read(str(path), {"text": 0}, tmp_path) == {"text": ["id1", "id2", "id1"]}


def test_text_files(tmp_path):
    (tmp_path / "news.de").write_text("eins\nzwei\n", encoding="utf-8")
    (tmp_path / "news.en").write_text("one\ntwo\n", encoding="utf-8")
    columns = {"source": "de", "target": "en"}
    assert files.read(str(tmp_path / "news"), columns, tmp_path) == {
        "source": ["eins", "zwei"],
        "target": ["one", "two"],
    }
    (tmp_path / "news.en").write_text("one\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"news\.de has 2 lines but .*news\.en has 1: they must be aligned"):
        files.read(str(tmp_path / "news"), columns, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no file .*other\.de"):
        files.read(str(tmp_path / "other"), columns, tmp_path)


def test_broken_tsv_files(tmp_path):
    path = tmp_path / "text.tsv"
    columns = {"source": 0, "target": 1}
    with pytest.raises(FileNotFoundError, match=r"no file .*text\.tsv: check"):
        files.read(str(path), columns, tmp_path)
    path.write_text("a\tb\nonly one\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"text\.tsv, line 2: expected at least 2 tab-separated columns, found 1"):
        files.read(str(path), columns, tmp_path)
    with pytest.raises(ValueError, match=r"text\.tsv, line 1: expected at least 5 tab-separated columns, found 2"):
        files.read(str(path), {"source": 0, "target": 4}, tmp_path)
    with pytest.raises(ValueError, match="counted from 0, got -1 and 1"):
        files.read(str(path), {"source": -1, "target": 1}, tmp_path)
    path.write_bytes(b"a\tb\ncaf\xe9\tb\n")
    with pytest.raises(ValueError, match=r"text\.tsv, line 2: not valid UTF-8"):
        files.read(str(path), columns, tmp_path)


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz"])
def test_damaged_files(tmp_path, suffix):
    path = tmp_path / f"text.tsv{suffix}"
    with OPENERS[suffix](path, "wb") as file:
        file.writelines(f"{i}\t{i * i}\n".encode() for i in range(1000))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=rf"text\.tsv{suffix} cannot be read as a {suffix} file"):
        files.read(str(path), {"text": 0}, tmp_path)
    path.write_text("plain\ttext\n", encoding="utf-8")
    with pytest.raises(ValueError, match=rf"text\.tsv{suffix} cannot be read as a {suffix} file"):
        files.read(str(path), {"text": 0}, tmp_path)


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    module = pytest.importorskip("datasets")
    monkeypatch.setattr(module.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    module.disable_progress_bars()
    return module


def test_huggingface(tmp_path, datasets):
    rows = [{"de": "eins", "en": "one", "id": 1}, {"de": None, "en": "two", "id": 2}]
    expected = {"source": ["eins", ""], "target": ["one", "two"]}
    columns = {"source": "de", "target": "en"}
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert huggingface.read(str(path), columns, tmp_path) == expected
    nested = datasets.Dataset.from_list([{"translation": {"de": row["de"], "en": row["en"]}} for row in rows])
    nested.save_to_disk(tmp_path / "nested")
    assert huggingface.read(str(tmp_path / "nested"), columns, tmp_path) == expected
    datasets.DatasetDict(validation=nested).save_to_disk(tmp_path / "splits")
    assert huggingface.read(f"{tmp_path / 'splits'}@validation", columns, tmp_path) == expected
    with pytest.raises(ValueError, match=r"splits has no split train: name one as NAME@SPLIT"):
        huggingface.read(str(tmp_path / "splits"), columns, tmp_path)
    with pytest.raises(ValueError, match=r"rows\.jsonl has no fr; it has de, en, id: name one of these"):
        huggingface.read(str(path), {"source": "de", "target": "fr"}, tmp_path)
    with pytest.raises(ValueError, match=r'cannot read dataset .*rows\.jsonl@dev: Unknown split "dev"'):
        huggingface.read(f"{path}@dev", columns, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.json"):
        huggingface.read(str(tmp_path / "none.json"), columns, tmp_path)


def test_huggingface_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r'pip install "dynaconv\[datasets\]"'):
        huggingface.read("name", {"text": "text"}, tmp_path)
