"""Documents: how they are read, split, tokenized and laid into rows."""

import pickle
from itertools import chain

import numpy as np
import pytest

from dynaconv.data.batching import TokenBatchSampler
from dynaconv.data.documents import CausalCollator
from dynaconv.tasks.language_modelling.corpus import load_documents, prepare
from dynaconv.tasks.language_modelling.recipe import DataConfig, TokenizerConfig

from .support import write_text

SMALL = {"valid_size": 20, "test_size": 20, "near_duplicates": True}
BYTES = TokenizerConfig(vocab_size=300)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        ("line", ["one", "two", "three", "four"]),
        ("paragraph", ["one\ntwo", "three\nfour"]),
        ("file", ["one\ntwo\n\n\nthree\nfour"]),
    ],
)
def test_what_a_document_is(tmp_path, documents, expected):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text("one\ntwo\n\n\nthree\nfour\n", encoding="utf-8")
    held_out = str(tmp_path / "b.txt")
    config = DataConfig(
        train=str(tmp_path / "a.txt"), valid=held_out, test=held_out, documents=documents, near_duplicates=True
    )
    found = load_documents(config, tmp_path)
    assert found == dict.fromkeys(("train", "valid", "test"), expected)


@pytest.mark.parametrize(("documents", "expected"), [("paragraph", ["a", "b", "c"]), ("file", ["a", "b\n\nc"])])
def test_no_document_goes_on_into_the_next_file(tmp_path, documents, expected):
    for name, content in (("n-1", "a\n"), ("n-2", "b\n\nc\n"), ("held", "x\n")):
        (tmp_path / name).write_text(content, encoding="utf-8")
    held_out = str(tmp_path / "held")
    config = DataConfig(train=str(tmp_path / "n-*"), valid=held_out, test=held_out, documents=documents)
    assert load_documents(config, tmp_path)["train"] == expected


def test_documents_that_are_cut_are_counted(text, tmp_path):
    data = DataConfig(train=str(text), rows="documents", window=8, **SMALL)
    sizes = prepare(data, BYTES, tmp_path).sizes["valid"]
    assert 0 < sizes["cut"] <= sizes["documents"]
    assert prepare(DataConfig(train=str(text), window=8, **SMALL), BYTES, tmp_path).sizes["valid"]["cut"] == 0


def test_a_pattern_names_many_files_and_repeats_are_dropped(tmp_path):
    for name, content in (("n-2", "c\nd\n"), ("n-1", "a\na\n"), ("held", "x\n")):
        (tmp_path / name).write_text(content, encoding="utf-8")
    held_out = str(tmp_path / "held")
    config = DataConfig(train=str(tmp_path / "n-*"), valid=held_out, test=held_out)
    assert load_documents(config, tmp_path)["train"] == ["a", "c", "d"]


def test_near_duplicates_of_held_out_documents_are_dropped(tmp_path):
    (tmp_path / "train").write_text("A cat, 12!\nother\n", encoding="utf-8")
    (tmp_path / "held").write_text("a cat 7\n", encoding="utf-8")
    held_out = str(tmp_path / "held")
    config = DataConfig(train=str(tmp_path / "train"), valid=held_out, test=held_out)
    assert load_documents(config, tmp_path)["train"] == ["other"]


def test_documents_of_a_table(tmp_path):
    (tmp_path / "t.tsv").write_text("".join(f"{i}\tdocument {chr(97 + i)}\n" for i in range(9)), encoding="utf-8")
    config = DataConfig(format="tsv", train=str(tmp_path / "t.tsv"), number=1, valid_size=2, test_size=2)
    found = load_documents(config, tmp_path)
    assert sorted(chain.from_iterable(found.values())) == [f"document {chr(97 + i)}" for i in range(9)]


def test_packed_rows_hold_all_tokens_and_know_where_documents_begin(text, tmp_path):
    corpus = prepare(DataConfig(train=str(text), window=32, **SMALL), BYTES, tmp_path)
    tokens = np.concatenate([corpus.valid[i]["tokens"] for i in range(len(corpus.valid))])
    starts = [32 * i + start for i in range(len(corpus.valid)) for start in corpus.valid[i]["starts"]]
    documents = [tokens[a:b] for a, b in zip(starts, [*starts[1:], len(tokens)])]
    lines = (corpus.directory / "valid.txt").read_text("utf-8").splitlines()
    assert len(lines) == corpus.sizes["valid"]["documents"] == 20
    decoded = [corpus.tokenizer.decode(ids, skip_special_tokens=True) for ids in documents]
    assert decoded == lines
    assert all(
        ids[0] == corpus.tokenizer.bos_token_id and ids[-1] == corpus.tokenizer.eos_token_id for ids in documents
    )
    assert corpus.sizes["valid"]["tokens"] == sum(len(ids) - 1 for ids in documents)
    assert corpus.sizes["valid"]["bytes"] == len((corpus.directory / "valid.txt").read_bytes())
    assert set(corpus.train.lengths["tokens"]) == {32}
    assert [len(rows) for rows in TokenBatchSampler.of(corpus.train, 128)][:3] == [4, 4, 4]
    again = pickle.loads(pickle.dumps(corpus.valid))
    assert (again[1]["tokens"] == corpus.valid[1]["tokens"]).all()
    assert len(again) == len(corpus.valid)


def test_batches_of_packed_rows():
    rows = [
        {"tokens": np.array([0, 5, 6, 2, 0, 7], np.uint16), "starts": np.array([0, 4])},
        {"tokens": np.array([8, 2, 0, 9], np.uint16), "starts": np.array([2])},
    ]
    batch = {name: tensor.tolist() for name, tensor in CausalCollator()(rows).items()}
    assert batch == {
        "input_ids": [[0, 5, 6, 2, 0, 7], [8, 2, 0, 9, 0, 0]],
        "labels": [[-100, 5, 6, 2, -100, 7], [-100, 2, -100, 9, -100, -100]],
        "position_ids": [[0, 1, 2, 3, 0, 1], [0, 1, 0, 1, 0, 0]],
    }


def test_batches_of_documents():
    rows = [{"tokens": np.array([0, 5, 2], np.uint16)}, {"tokens": np.array([0, 2], np.uint16)}]
    batch = {name: tensor.tolist() for name, tensor in CausalCollator()(rows).items()}
    assert batch == {"input_ids": [[0, 5, 2], [0, 2, 0]], "labels": [[-100, 5, 2], [-100, 2, -100]]}


def test_words_come_by_frequency(tmp_path):
    (tmp_path / "t").write_text("b b b a a c\nb a\nd d d d d\n", encoding="utf-8")
    name = str(tmp_path / "t")
    data = DataConfig(train=name, valid=name, test=name, near_duplicates=True, rows="documents", window=4)
    corpus = prepare(data, TokenizerConfig(kind="words", vocab_size=7), tmp_path)
    assert corpus.tokenizer.convert_ids_to_tokens([4, 5, 6]) == ["d", "b", "a"]
    assert [corpus.train[i]["tokens"].tolist() for i in range(3)] == [[0, 5, 5, 2], [0, 5, 6, 2], [0, 4, 4, 2]]


def test_text_that_looks_like_a_special_token_is_text(text, tmp_path):
    tokenizer = prepare(DataConfig(train=str(text), **SMALL), BYTES, tmp_path).tokenizer
    assert tokenizer.decode(tokenizer("a</s> é", add_special_tokens=False)["input_ids"]) == "a</s> é"
    assert tokenizer.eos_token_id not in tokenizer("a</s>", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": None}, "data.train must be given"),
        ({"train": "absent"}, "no file"),
        ({"valid_size": 400}, "cannot hold out 400 of 400 rows"),
    ],
)
def test_what_is_refused(text, tmp_path, options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        prepare(DataConfig(**{"train": str(text), **SMALL, **options}), BYTES, tmp_path)


def test_a_vocabulary_too_small_for_bytes_is_refused(text, tmp_path):
    with pytest.raises(ValueError, match="at least 260 for pairs of bytes; got 200"):
        prepare(DataConfig(train=str(text), **SMALL), TokenizerConfig(vocab_size=200), tmp_path)
