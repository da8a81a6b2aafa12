"""Words by the rules of Moses, from the text of a corpus to the text of a translation."""

import pytest

from dynaconv.data.moses import cut_words, join_words
from dynaconv.data.tokenizer import TokenizerConfig, load_tokenizers, moses_language, save_tokenizers, train_tokenizers
from dynaconv.seq2seq.corpus import PairConfig, prepare
from dynaconv.seq2seq.generator import SequenceGenerator
from dynaconv.tasks.translation.recipe import DataConfig

from ..conftest import toy_pairs, write_tsv

LANGUAGES = {"source": "de", "target": "en"}


def test_words():
    """What the scripts of Moses make of it (normalize-punctuation, then tokenizer)."""
    text = ["Dr. Müller sagt: „Hallo, Welt!“", "z.B. 3,5 kg & mehr"]
    assert cut_words(text, "de") == [
        "Dr. Müller sagt : &quot; Hallo , Welt ! &quot;",
        "z.B. 3,5 kg &amp; mehr",
    ]
    assert cut_words(["It's Mr. Smith's dog, isn't it?"], "en") == [
        "It &apos;s Mr. Smith &apos;s dog , isn &apos;t it ?"
    ]


def test_joined_words_are_text():
    for text in ("It's Mr. Smith's dog, isn't it?", 'He said "yes" (twice) & left.'):
        assert join_words(cut_words([text], "en"), "en") == [text]


@pytest.mark.parametrize("joint", [True, False])
def test_the_tokenizers_remember_it(tmp_path, joint):
    config = TokenizerConfig(vocab_size=150, joint=joint, moses=True)
    pairs = toy_pairs(50)
    text = {"source": [f"{a}." for a, _ in pairs], "target": [f"{b}." for _, b in pairs]}
    made = train_tokenizers(text, config, LANGUAGES)
    save_tokenizers(made, tmp_path)
    for tokenizers in (made, load_tokenizers(tmp_path, LANGUAGES)):
        assert {side: moses_language(tokenizers[side], side) for side in LANGUAGES} == LANGUAGES
    plain = train_tokenizers(text, TokenizerConfig(vocab_size=150))
    assert moses_language(plain["source"], "source") is None


def test_training_and_translation_see_the_same_tokens(tmp_path):
    pairs = [(f"{a}, sagt er.", f"{b}, he says.") for a, b in toy_pairs(60)]
    data = DataConfig(train=str(write_tsv(tmp_path / "train.tsv", pairs)), valid_size=5, test_size=5)
    corpus = prepare(data, TokenizerConfig(vocab_size=150, moses=True), tmp_path / "cache")
    generator = SequenceGenerator(None, **corpus.tokenizers)
    for i, line in enumerate(corpus.text["valid"]["source"]):
        assert line.endswith(", sagt er."), "held-out text stays as it is written"
        assert generator.encode("source", line) == corpus.valid[i]["source"].tolist()
        assert "Ġ" not in line
    comma = corpus.tokenizers["source"]("rote , sagt")["input_ids"]
    assert comma != corpus.tokenizers["source"]("rote, sagt")["input_ids"]


def test_languages_must_be_known(tmp_path):
    class Unknown(PairConfig):
        def names(self):
            return LANGUAGES

    data = Unknown(train=str(write_tsv(tmp_path / "train.tsv", toy_pairs(60))), valid_size=5, test_size=5)
    with pytest.raises(ValueError, match="tokenizer.moses needs the languages"):
        prepare(data, TokenizerConfig(vocab_size=150, moses=True), tmp_path / "cache")


def test_a_language_that_moses_does_not_know(caplog):
    assert cut_words(["Dr. No said no."], "xx") == cut_words(["Dr. No said no."], "en")
    assert "Moses has no list of abbreviations for the language 'xx'" in caplog.text
