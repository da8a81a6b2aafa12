"""Debian's package descriptions, from hand-made index files and an `apt-get` of our own: no network."""

import os
import stat
from pathlib import Path

import pytest

from dynaconv.data.sources.debian import align_descriptions, read
from dynaconv.seq2seq.corpus import load_pairs
from dynaconv.tasks.translation.recipe import DataConfig

ENGLISH = """Package: hello
Description-md5: aaa1
Description-en: example program
 This program says hello. It does
 nothing else, e.g. no harm.
 .
 Features:
  * verbatim, left out
 - an item, left out
   and its second line
 .
 It is version 2. Use it!

Package: only-english
Description-md5: bbb2
Description-en: nobody translated this

Package: uneven
Description-md5: ccc3
Description-en: summary of an uneven one
 First paragraph.
 .
 Second paragraph.

Package: hello-clone
Description-md5: ddd4
Description-en: example program
"""
GERMAN = """Package: hello
Description-md5: aaa1
Description-de: Beispielprogramm
 Dieses Programm sagt Hallo. Es tut
 sonst nichts, z. B. keinen Schaden.
 .
 Merkmale:
  * wörtlich, ausgelassen
 - ein Punkt, ausgelassen
   und seine zweite Zeile
 .
 Dies ist Version 2. Verwenden Sie es! Jetzt.

Package: uneven
Description-md5: ccc3
Description-de: Zusammenfassung
 Nur ein Absatz.

Package: hello-clone
Description-md5: ddd4
Description-de: Beispielprogramm
"""
GERMAN_ENGLISH = {"source": "de", "target": "en"}
PAIRS = [
    ("Beispielprogramm", "example program"),
    ("Dieses Programm sagt Hallo.", "This program says hello."),
    ("Es tut sonst nichts, z. B. keinen Schaden.", "It does nothing else, e.g. no harm."),
    ("Merkmale:", "Features:"),
    ("Dies ist Version 2. Verwenden Sie es! Jetzt.", "It is version 2. Use it!"),
]

# Stands in for apt-get: `update` writes the lists, `indextargets` names them. $3 is the configuration file.
APT_GET = """#!/bin/sh
lists=$(dirname "$3")/lists
case $1 in
  update) cp "$INDEX"/* "$lists"; echo "$COMPLAINT" >&2; echo run >> "$INDEX".log ;;
  indextargets) for code in de en; do echo "$code $lists/Translation-$code"; done ;;
esac
"""


@pytest.fixture
def index(tmp_path) -> Path:
    folder = tmp_path / "index"
    folder.mkdir()
    (folder / "Translation-en").write_text(ENGLISH, encoding="utf-8")
    (folder / "Translation-de").write_text(GERMAN, encoding="utf-8")
    return folder


@pytest.fixture
def apt_get(tmp_path, index, monkeypatch):
    """Installs a script as `apt-get`, or takes apt-get away."""

    def install(script: str | None, complaint: str = "") -> None:
        programs = tmp_path / "bin"
        programs.mkdir(exist_ok=True)
        if script is not None:
            (programs / "apt-get").write_text(script, encoding="utf-8")
            (programs / "apt-get").chmod(stat.S_IRWXU)
        monkeypatch.setenv("PATH", str(programs) if script is None else f"{programs}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("INDEX", str(index))
        monkeypatch.setenv("COMPLAINT", complaint)

    return install


def test_alignment(index):
    assert align_descriptions([index / "Translation-de"], [index / "Translation-en"], "de") == PAIRS


@pytest.mark.parametrize("language", ["de", "en"])
def test_both_directions_and_the_second_call_needs_no_apt(tmp_path, index, apt_get, language):
    apt_get(APT_GET)
    other = {"de": "en", "en": "de"}[language]
    columns = {"source": language, "target": other}
    first = read("", columns, tmp_path)
    foreign, english = map(list, zip(*PAIRS, strict=True))
    assert first == {column: foreign if code == "de" else english for column, code in columns.items()}
    assert read("", columns, tmp_path) == first
    assert (tmp_path / "index.log").read_text() == "run\n"
    assert {path.suffix for path in (tmp_path / "debian").iterdir()} == {".json", ""}


def test_through_load_pairs(tmp_path, apt_get):
    apt_get(APT_GET)
    splits = load_pairs(DataConfig(format="debian", valid_size=1, test_size=1), tmp_path / "cache")
    assert sorted(pair for text in splits.values() for pair in zip(*text.values(), strict=True)) == sorted(PAIRS)


def test_apt_fails(tmp_path, apt_get):
    apt_get("#!/bin/sh\necho 'W: something' >&2\necho 'E: The repository is gone.' >&2\nexit 100\n")
    with pytest.raises(RuntimeError, match=r"apt-get update failed: E: The repository is gone\.$"):
        read("", GERMAN_ENGLISH, tmp_path)
    assert not list((tmp_path / "debian").glob("*.json"))


def test_language_without_a_file(tmp_path, index, apt_get):
    (index / "Translation-de").unlink()
    apt_get(APT_GET, complaint="W: Failed to fetch it.\nW: Some index files failed.")
    message = r"no package descriptions in de \(W: Failed to fetch it\.\): check the network"
    with pytest.raises(RuntimeError, match=message):
        read("", GERMAN_ENGLISH, tmp_path)


def test_no_apt(tmp_path, apt_get):
    apt_get(None)
    with pytest.raises(ValueError, match="need apt-get, which this system does not have: give text"):
        read("", GERMAN_ENGLISH, tmp_path)


@pytest.mark.parametrize(("source", "target"), [("de", "fr"), ("en", "en"), ("zh", "en")])
def test_unsupported_pair(tmp_path, source, target):
    with pytest.raises(ValueError, match=f"pair en with de, fr, it, es; got {source}-{target}"):
        read("", {"source": source, "target": target}, tmp_path)
