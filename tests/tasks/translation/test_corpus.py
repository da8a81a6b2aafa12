"""Cleaning and splitting parallel text."""

import logging
import random

import pytest

from dynaconv.data.splits import near_duplicate_key
from dynaconv.data.text import Text, count_rows
from dynaconv.seq2seq.corpus import load_pairs
from dynaconv.tasks.translation.recipe import DataConfig

from ...conftest import toy_pairs, write_tsv


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
        splits = load_pairs(DataConfig(train=str(path), valid_size=1, test_size=1, max_words=10))
    pairs = {pair for text in splits.values() for pair in zip(*text.values(), strict=True)}
    assert pairs == {*good, *kept[:2], ("König Drosselbart", "King Thrushbeard")}
    for part in (
        "kept 23 of 32 pairs",
        "3 empty",
        "1 longer than 10 words",
        "1 sides differ by more than 1.5 x + 3 words",
        "1 untranslated",
        "3 repeated",
    ):
        assert part in caplog.text


def test_nothing_left_after_cleaning(tmp_path):
    path = write_tsv(tmp_path / "train.tsv", [("", "a"), ("b", "c d e f g h")])
    with pytest.raises(ValueError, match=r"empty after cleaning \(2 pairs read; dropped: 1 empty, 1 sides differ"):
        load_pairs(DataConfig(train=str(path)))
    path.write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match=r"empty after cleaning \(0 pairs read; dropped: none\)"):
        load_pairs(DataConfig(train=str(path)))
    full = str(write_tsv(tmp_path / "full.tsv", toy_pairs(20)))
    with pytest.raises(ValueError, match=r"data\.test .*train\.tsv has no lines"):
        load_pairs(DataConfig(train=full, test=str(path), valid_size=1))


def test_no_training_text_named():
    with pytest.raises(ValueError, match=r"data\.train must be given for data\.format tsv"):
        load_pairs(DataConfig())
    with pytest.raises(
        ValueError, match=r"data\.format debian reads no data\.train, got x\.tsv: set data\.format to tsv"
    ):
        load_pairs(DataConfig(format="debian", train="x.tsv"))


def repetitive_pairs(count: int = 400) -> list[tuple[str, str]]:
    """Sentences from few templates, each with a number or name of its own."""
    rng = random.Random(0)
    letters = "abcdefghijklmnopqrst"
    words = ["".join(rng.choices(letters, k=6)) for _ in range(count // 4)]
    return [(f"{w} kleine{n}", f"the {w[::-1]} small-{n} {n}") for n, w in enumerate(words * 4)]


def shared_keys(splits: dict[str, Text]) -> int:
    train = {near_duplicate_key(line) for lines in splits["train"].values() for line in lines}
    return sum(near_duplicate_key(line) in train for name in ("valid", "test") for line in splits[name]["source"])


def test_no_near_duplicates_across_splits(tmp_path):
    train = str(write_tsv(tmp_path / "train.tsv", repetitive_pairs()))
    config = DataConfig(train=train, valid_size=10, test_size=10)
    splits = load_pairs(config)
    assert [count_rows(text) for text in splits.values()] == [400 - 4 * 20, 10, 10]
    assert list(splits) == ["train", "valid", "test"]
    assert shared_keys(splits) == 0
    assert splits == load_pairs(config)
    config.seed = 2
    assert splits["valid"] != load_pairs(config)["valid"]


def test_the_check_above_finds_near_duplicates_where_they_are_kept(tmp_path):
    train = str(write_tsv(tmp_path / "train.tsv", repetitive_pairs()))
    splits = load_pairs(DataConfig(train=train, valid_size=10, test_size=10, near_duplicates=True))
    assert count_rows(splits["train"]) == 380
    assert shared_keys(splits) > 10


def test_training_text_loses_near_duplicates_of_given_files(tmp_path):
    pairs = repetitive_pairs()
    train, valid = write_tsv(tmp_path / "train.tsv", pairs), write_tsv(tmp_path / "valid.tsv", pairs[:3])
    config = DataConfig(train=str(train), valid=str(valid), test_size=5)
    splits = load_pairs(config)
    assert list(zip(*splits["valid"].values(), strict=True)) == pairs[:3]
    assert count_rows(splits["train"]) == 400 - 3 * 4 - 5 * 4
    assert shared_keys(splits) == 0


def test_nothing_but_near_duplicates(tmp_path):
    path = str(write_tsv(tmp_path / "train.tsv", repetitive_pairs()))
    with pytest.raises(ValueError, match=r"all 400 training pairs nearly repeat data\.valid or data\.test"):
        load_pairs(DataConfig(train=path, valid=path, test=path))
    with pytest.raises(ValueError, match="cannot hold out 1,000 of 100 rows"):
        load_pairs(DataConfig(train=path))
    with pytest.raises(ValueError, match=r"data\.valid_size must be at least 1, got 0"):
        load_pairs(DataConfig(train=path, valid_size=0))


def test_every_nth_pair_is_held_out(tmp_path):
    pairs = toy_pairs(50)
    path = str(write_tsv(tmp_path / "train.tsv", pairs))
    splits = load_pairs(DataConfig(train=path, test=path, valid_every=10, near_duplicates=True))
    assert splits["valid"] == {
        "source": [pairs[i][0] for i in (9, 19, 29, 39, 49)],
        "target": [pairs[i][1] for i in (9, 19, 29, 39, 49)],
    }
    assert count_rows(splits["train"]) == 45
    assert pairs[10][0] in splits["train"]["source"]
    apart = load_pairs(DataConfig(train=path, valid_every=10, test_size=5))
    assert not set(apart["valid"]["source"]) & set(apart["train"]["source"] + apart["test"]["source"])
    with pytest.raises(ValueError, match="data.valid of one training pair in 51 has no lines"):
        load_pairs(DataConfig(train=path, valid_every=51))


@pytest.mark.parametrize(
    ("source", "target", "dropped"),
    [
        ("Dieses Paket enthält die Dokumentation.", "This package contains the documentation.", False),
        ("このパッケージには GNU ソースレベルデバッガのドキュメントが含まれています。", "This package contains documentation for the GNU source-level debugger.", False),
        ("This package contains documentation for the GNU source-level debugger.", "本软件包包含 GNU 源码级调试器的文档。", False),
        ("이 패키지에는 GNU 소스 수준 디버거에 대한 문서가 들어 있습니다.", "This package contains documentation for the GNU source-level debugger.", False),
        ("แพ็กเกจนี้มีเอกสารของโปรแกรมดีบักเกอร์", "This package contains documentation for the debugger.", False),
        ("本软件包包含文档。", "This package contains a very long text of which the other side has not a single word, as somebody put two lines together", True),
        ("Ja.", "This package contains a very long text of which the other side has not a single word", True),
        ("説明" * 600, "This package contains the documentation of which there is very much " * 30, True),
        ("本软件包包含文档。", "本软件包包含文档。", True),
    ],
)  # fmt: skip
def test_lengths_of_languages_with_and_without_spaces(source, target, dropped):
    assert (DataConfig().reason_to_drop(source, target) is not None) == dropped
