"""Tokenizers and prepared corpora."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from dynaconv.data import DataConfig, TokenizerConfig
from dynaconv.data import dataset as dataset_module
from dynaconv.data.corpus import ParallelText
from dynaconv.data.dataset import prepare
from dynaconv.data.tokenizer import load_tokenizers, save_tokenizers, train_tokenizers

from ..conftest import toy_pairs, write_tsv

TEXT = ParallelText(*map(list, zip(*toy_pairs(300), strict=True)))
JOINT = train_tokenizers(TEXT, TokenizerConfig(vocab_size=150))[0]
ALPHABET = sorted(set("".join(TEXT.source + TEXT.target)) - {" "})


@settings(deadline=None, derandomize=True)
@given(words=st.lists(st.text(ALPHABET, min_size=1), max_size=8))
def test_round_trip(words):
    text = " ".join(words)
    ids = JOINT(text)["input_ids"]
    assert ids[-1] == 2
    assert JOINT.decode(ids, skip_special_tokens=True) == text


def test_special_tokens_and_unknown_text():
    assert [JOINT.convert_tokens_to_ids(t) for t in ("<s>", "<pad>", "</s>", "<unk>")] == [0, 1, 2, 3]
    assert JOINT("我")["input_ids"].count(3) == 1
    assert JOINT("")["input_ids"] == [2]


def test_joint_and_separate(tmp_path):
    save_tokenizers(JOINT, JOINT, tmp_path / "joint")
    source, target = load_tokenizers(tmp_path / "joint")
    assert source is target
    assert AutoTokenizer.from_pretrained(tmp_path / "joint")("rote")["input_ids"] == JOINT("rote")["input_ids"]
    pair = train_tokenizers(TEXT, TokenizerConfig(vocab_size=100, joint=False, lowercase=True))
    save_tokenizers(*pair, tmp_path / "separate")
    loaded = load_tokenizers(tmp_path / "separate")
    for before, after in zip(pair, loaded, strict=True):
        assert before.get_vocab() == after.get_vocab()
    assert loaded[0]("HUNDE")["input_ids"] == loaded[0]("hunde")["input_ids"]
    with pytest.raises(FileNotFoundError, match="no tokenizer in"):
        load_tokenizers(tmp_path)


def test_small_vocabulary():
    with pytest.raises(ValueError, match=r"tokenizer\.vocab_size 20 is too small for text with \d+ common characters"):
        train_tokenizers(TEXT, TokenizerConfig(vocab_size=20))


def make(tmp_path, **options):
    path = tmp_path / "train.tsv"
    if not path.exists():
        write_tsv(path, toy_pairs(300))
    data = DataConfig(train=str(path), valid_size=20, test_size=20, **options)
    return prepare(data, TokenizerConfig(vocab_size=150), tmp_path / "cache")


def test_prepared_once(tmp_path, monkeypatch):
    first = make(tmp_path)
    monkeypatch.setattr(dataset_module, "load_parallel", None)
    again = make(tmp_path)
    assert again.directory == first.directory
    assert again.text == first.text
    assert len(again.train) == 260
    for i in (0, 19):
        item = again.test[i]
        assert item["input_ids"].dtype == np.uint16
        assert len(item["labels"]) == again.test.target_lengths[i]
        assert again.target_tokenizer.decode(item["labels"], skip_special_tokens=True) == again.text["test"].target[i]
    with pytest.raises(TypeError):
        make(tmp_path, seed=2)


def test_a_changed_file_is_prepared_anew(tmp_path):
    first = make(tmp_path)
    write_tsv(tmp_path / "train.tsv", toy_pairs(299))
    assert make(tmp_path).directory != first.directory


def test_an_interrupted_preparation_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(dataset_module, "save_tokenizers", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path)
    assert list((tmp_path / "cache" / "prepared").iterdir()) == []
    monkeypatch.undo()
    assert len(make(tmp_path).train) == 260
