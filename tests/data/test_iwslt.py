"""The files of the IWSLT campaigns."""

import pytest

from dynaconv.data.sources import iwslt

COLUMNS = {"source": "de", "target": "en"}


@pytest.fixture
def prefix(tmp_path):
    lines = {
        "de": [
            "<url>http://a.org</url>",
            "<doc docid=1>",
            "<title>Über &amp; mehr</title>",
            " Guten Tag. ",
            "<reviewer></reviewer>",
            "",
        ],
        "en": [
            "<url>http://a.org</url>",
            "<doc docid=1>",
            "<title>About</title>",
            "Good day.",
            "<reviewer></reviewer>",
            "nothing",
        ],
    }
    for language, text in lines.items():
        (tmp_path / f"train.tags.de-en.{language}").write_text("\n".join(text) + "\n", encoding="utf-8")
        segments = f'<doc><title>x</title>\n<seg id="1"> {language} eins &amp; zwei </seg>\n<seg id="2">z</seg></doc>\n'
        (tmp_path / f"tst.de-en.{language}.xml").write_text(segments, encoding="utf-8")
    return tmp_path / "train.tags.de-en"


def test_what_describes_a_talk_is_left_out_and_its_title_is_text(prefix, tmp_path):
    expected = {"source": ["Über &amp; mehr", "Guten Tag.", ""], "target": ["About", "Good day.", "nothing"]}
    assert iwslt.read(str(prefix), COLUMNS, tmp_path) == expected


def test_segments_of_xml_and_several_prefixes(prefix, tmp_path):
    found = iwslt.read(f"{tmp_path / 'tst.de-en'},{prefix}", COLUMNS, tmp_path)
    assert found["source"][:3] == ["de eins & zwei", "z", "Über &amp; mehr"]
    assert len(found["source"]) == len(found["target"]) == 5
    names = [path.name for path in iwslt.files(f"{tmp_path / 'tst.de-en'},{prefix}", COLUMNS, tmp_path)]
    assert names == ["tst.de-en.de.xml", "tst.de-en.en.xml", "train.tags.de-en.de", "train.tags.de-en.en"]


def test_files_that_are_not_aligned(prefix, tmp_path):
    path = prefix.with_name("train.tags.de-en.en")
    path.write_text(path.read_text() + "one more\n")
    with pytest.raises(ValueError, match=r"has {'de': 3, 'en': 4} lines of text: its files must be aligned"):
        iwslt.read(str(prefix), COLUMNS, tmp_path)
    with pytest.raises(FileNotFoundError, match="no file"):
        iwslt.read(str(tmp_path / "nowhere"), COLUMNS, tmp_path)
