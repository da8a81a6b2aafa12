"""Byte-pair encoding."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from dynaconv.data.tokenizer import TokenizerConfig, load_tokenizers, save_tokenizers, train_tokenizers

TEXT = {
    "source": ["Der schnelle Fuchs (rot) springt über 42 faule Hunde.", "Wie geht's? <pad> </s> ist Text!"] * 30,
    "target": ["The quick fox (red) jumps over 42 lazy dogs.", "How's it going? <unk> is text, too: 3.5%"] * 30,
}
ALPHABET = "".join(sorted(set("".join(TEXT["source"] + TEXT["target"])) - {" "}))


@pytest.fixture(scope="module")
def joint():
    tokenizers = train_tokenizers(TEXT, TokenizerConfig(vocab_size=200))
    assert tokenizers["source"] is tokenizers["target"]
    return tokenizers["source"]


@given(st.text(ALPHABET + " \t\u00a0", max_size=60))
def test_round_trip(joint, text):
    ids = joint(text)["input_ids"]
    assert ids[-1] == 2
    assert not {0, 1, 2, 3} & set(ids[:-1])
    assert joint.decode(ids, skip_special_tokens=True) == " ".join(text.split())


def test_special_tokens_and_what_a_call_returns(joint):
    tokenizer = joint
    assert [tokenizer.convert_tokens_to_ids(token) for token in ("<s>", "<pad>", "</s>", "<unk>")] == [0, 1, 2, 3]
    assert tokenizer.padding_side == "right"
    batch = tokenizer(["rot", "Der schnelle Fuchs"], padding=True)
    assert set(batch) == {"input_ids", "attention_mask"}
    assert batch["input_ids"][0][-1] == 1
    assert 2 not in tokenizer("rot", add_special_tokens=False)["input_ids"]
    assert tokenizer("rot 漢")["input_ids"].count(3) == 1


def test_digits_and_signs_are_tokens_of_their_own(joint):
    assert joint.tokenize("rot42).")[-4:] == ["4", "2", ")", "."]


def test_decomposed_letters_are_the_same(joint):
    assert joint("u\u0308ber")["input_ids"] == joint("über")["input_ids"]


@pytest.mark.parametrize("joint_vocabulary", [True, False])
def test_saved_and_loaded(tmp_path, joint_vocabulary):
    trained = train_tokenizers(TEXT, TokenizerConfig(vocab_size=150, joint=joint_vocabulary))
    save_tokenizers(trained, tmp_path)
    loaded = load_tokenizers(tmp_path, TEXT)
    line = "Fuchs <pad> 42 </s> über"
    for tokenizers in (trained, loaded):
        assert (tokenizers["source"] is tokenizers["target"]) == joint_vocabulary
    for column in TEXT:
        assert trained[column](line) == loaded[column](line)
        assert len(loaded[column]) <= 150
    folder = tmp_path if joint_vocabulary else tmp_path / "target_tokenizer"
    assert AutoTokenizer.from_pretrained(folder)(line)["input_ids"] == trained["target"](line)["input_ids"]


def test_lowercase():
    tokenizer = train_tokenizers(TEXT, TokenizerConfig(vocab_size=150, lowercase=True))["target"]
    assert tokenizer.decode(tokenizer("ÜBER Hunde")["input_ids"], skip_special_tokens=True) == "über hunde"


def test_vocabulary_smaller_than_the_alphabet():
    with pytest.raises(ValueError, match=r"vocab_size 20 is too small for text with \d+ common characters"):
        train_tokenizers(TEXT, TokenizerConfig(vocab_size=20))


def test_loading_from_a_folder_without_tokenizer(tmp_path):
    with pytest.raises(FileNotFoundError, match="no tokenizer in"):
        load_tokenizers(tmp_path, TEXT)
