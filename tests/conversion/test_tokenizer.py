"""Dictionaries of fairseq and the byte-pair encoding of subword-nmt."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from dynaconv.conversion.fairseq.dictionary import read_dictionary
from dynaconv.data.tokenizer import load_tokenizers, save_tokenizers
from dynaconv.models import LightConvTokenizer
from dynaconv.models.lightconv.tokenization import BytePairEncoding

MERGES = "t h\nth e</w>\nl o\nlo w\nlow e\nlowe r</w>\na a\nlow s</w>\n"
ENDS = "t h\nth e\nthe </w>\nl o\nlo w\nlow e\nlowe r\na a\n"
OVERLAPPING = "b c\na b\nab c</w>\n"
LINE = "the lower  lows theth x lo aaa aaaa low über the, the </s> abc abcabc"
# What subword-nmt 0.3.8 makes of the line.
EXPECTED = {
    f"#version: 0.2\n{MERGES}": "the lower lows th@@ e@@ t@@ h x l@@ o aa@@ a aa@@ a@@ a lo@@ w ü@@ b@@ e@@ r th@@ e@@ , the <@@ /@@ s@@ > a@@ b@@ c a@@ b@@ c@@ a@@ b@@ c",
    MERGES: "th@@ e lowe@@ r low@@ s th@@ e@@ th x lo aa@@ a aa@@ aa low ü@@ b@@ e@@ r th@@ e@@ , th@@ e <@@ /@@ s@@ > a@@ b@@ c a@@ b@@ c@@ a@@ b@@ c",
    ENDS: "the lower low@@ s the@@ th x lo aa@@ a aa@@ aa low ü@@ b@@ e@@ r the@@ , the <@@ /@@ s@@ > a@@ b@@ c a@@ b@@ c@@ a@@ b@@ c",
    f"#version: 0.2\n{OVERLAPPING}": "t@@ h@@ e l@@ o@@ w@@ e@@ r l@@ o@@ w@@ s t@@ h@@ e@@ t@@ h x l@@ o a@@ a@@ a a@@ a@@ a@@ a l@@ o@@ w ü@@ b@@ e@@ r t@@ h@@ e@@ , t@@ h@@ e <@@ /@@ s@@ > abc a@@ bc@@ abc",
}


def make(folder, symbols, codes=None):
    folder.mkdir(exist_ok=True)
    (folder / "dict.xx.txt").write_text("".join(f"{symbol} 7\n" for symbol in symbols), "utf-8")
    (folder / "vocab").write_text("".join(f"{symbol}\n" for symbol in read_dictionary(folder / "dict.xx.txt")), "utf-8")
    if codes is not None:
        (folder / "codes").write_text(codes, "utf-8")
    return LightConvTokenizer(folder / "vocab", None if codes is None else folder / "codes")


@pytest.mark.parametrize(("codes", "expected"), EXPECTED.items(), ids=["0.2", "0.1", "0.1 with ends", "overlapping"])
def test_pieces_are_those_of_subword_nmt(tmp_path, codes, expected):
    assert make(tmp_path, ["the"], codes).tokenize(LINE) == expected.split()


def test_a_codes_file_counts_a_merge_once():
    assert BytePairEncoding("#version: 0.2\na b\nb c</w>\na b\n").split("abc") == ["ab", "c"]


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ("#version: 0.3\na b\n", "version 0.1 or 0.2 of subword-nmt; got 0.3"),
        ("a b 17\n", "must be two symbols, as subword-nmt writes it; got 'a b 17'"),
    ],
)
def test_codes_of_others(codes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        BytePairEncoding(codes)


PIECES = sorted({*EXPECTED[f"#version: 0.2\n{MERGES}"].split(), *"abcdü", *(f"{letter}@@" for letter in "abcdü")})


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make(tmp_path_factory.mktemp("bpe"), PIECES, f"#version: 0.2\n{MERGES}")


@given(st.lists(st.text("abcdü", min_size=1, max_size=6), max_size=5))
def test_round_trip(tokenizer, words):
    ids = tokenizer(" ".join(words))["input_ids"]
    assert ids[-1] == 2
    assert not {0, 1, 2, 3} & set(ids[:-1])
    assert tokenizer.decode(ids, skip_special_tokens=True) == " ".join(words)


def test_ids_are_those_of_the_dictionary(tokenizer):
    assert tokenizer.vocab_size == len(tokenizer) == 4 + len(PIECES)
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 3, 4]) == ["<s>", "<pad>", "</s>", "<unk>", PIECES[0]]
    assert tokenizer("the Q")["input_ids"] == [4 + PIECES.index("the"), 3, 2]
    batch = tokenizer(["the", "lower the"], padding=True)
    assert batch["input_ids"][0][1:] == [2, 1]
    assert batch["attention_mask"] == [[1, 1, 0], [1, 1, 1]]


def test_without_codes_pieces_stay_pieces(tmp_path):
    tokenizer = make(tmp_path, ["th@@", "e", "madeupword0000"])
    ids = tokenizer(" th@@ e  x\n")["input_ids"]
    assert ids == [4, 5, 3, 2]
    assert tokenizer.decode(ids[:2]) == "th@@ e"


def test_text_that_looks_like_a_special_token(tmp_path):
    assert make(tmp_path / "a", ["x"])("x </s> <pad>")["input_ids"] == [4, 3, 3, 2]
    overwritten = make(tmp_path / "b", ["x", "</s> 3 #fairseq:overwrite\ny"])
    assert overwritten("x </s> y")["input_ids"] == [4, 5, 6, 2]
    assert overwritten.decode([4, 5, 6, 2], skip_special_tokens=True) == "x </s> y"


def test_a_symbol_that_stands_twice(tmp_path):
    twice = make(tmp_path, ["x", "y", "x 3 #fairseq:overwrite\nz"])
    assert twice("x z")["input_ids"] == [6, 7, 2]
    assert twice.decode([4, 6]) == "x x"
    assert twice.vocab_size == 8


@pytest.mark.parametrize(("content", "message"), [
    ("a 1\nb 2\na 3\n", "dict.xx.txt, line 3: 'a' stands twice"), ("<unk> 1\n", "line 1: '<unk>' stands twice"),
    ("a 1\nb\n", "dict.xx.txt, line 2: must be a symbol and its count; got 'b'"), ("", "line 1: must be a symbol"),
    ("a x\n", "line 1: must be a symbol and its count; got 'a x'"),
])  # fmt: skip
def test_dictionaries_that_are_none(tmp_path, content, message):
    (tmp_path / "dict.xx.txt").write_text(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_dictionary(tmp_path / "dict.xx.txt")


def test_a_dictionary_in_another_encoding(tmp_path):
    (tmp_path / "dict.xx.txt").write_bytes("über 3\n".encode("latin-1"))
    with pytest.raises(ValueError, match="must be text in UTF-8"):
        read_dictionary(tmp_path / "dict.xx.txt")


@pytest.mark.parametrize("codes", [None, f"#version: 0.2\n{MERGES}"], ids=["no codes", "codes"])
@pytest.mark.parametrize("joined", [True, False])
def test_saved_and_loaded(tmp_path, joined, codes):
    source = make(tmp_path / "a", [*PIECES, "\u00a0", "\u2028"], codes)
    target = source if joined else make(tmp_path / "b", PIECES[::-1], codes)
    save_tokenizers({"source": source, "target": target}, tmp_path / "ours")
    loaded = load_tokenizers(tmp_path / "ours", ["source", "target"])
    assert (loaded["source"] is loaded["target"]) == joined
    for side, original in (("source", source), ("target", target)):
        assert loaded[side].get_vocab() == original.get_vocab()
        assert loaded[side](LINE) == original(LINE)
        assert loaded[side].decode(range(5, 12)) == original.decode(range(5, 12))
    folder = tmp_path / "ours" / ("" if joined else "target_tokenizer")
    assert AutoTokenizer.from_pretrained(folder)(LINE) == target(LINE)


def test_another_vocabulary(tmp_path):
    (tmp_path / "vocab").write_text("<pad>\nx\n")
    with pytest.raises(ValueError, match="must start with <s>, <pad>, </s>, <unk>; got"):
        LightConvTokenizer(tmp_path / "vocab")
