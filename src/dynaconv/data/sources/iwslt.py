"""The files of the IWSLT evaluation campaigns: talks with their tags, and XML test sets."""

import re
from collections.abc import Mapping
from html import unescape
from pathlib import Path

from ..text import Text
from .files import numbered_lines

# As the script of the 2014 baselines: what only describes a talk is left out, its title and description are text.
_LEFT_OUT = re.compile(r"\s*</?(url|keywords|speaker|talkid|reviewer|translator|doc)\b")
_TAGS = re.compile(r"</?(title|description)>")
_SEGMENT = re.compile(r"<seg[^>]*>(.*?)</seg>")


def read(spec: str, columns: Mapping[str, str | int], cache: Path) -> Text:
    """Read aligned files, one after the other.

    Args:
        spec: PREFIX of PREFIX.LANGUAGE (`train.tags.de-en`) or of PREFIX.LANGUAGE.xml (`IWSLT14.TED.tst2010.de-en`), or
            several of them with commas between.
        columns: {column of the result: language}.
        cache: not used.

    Raises:
        ValueError: text that cannot be used, or files that are not aligned.
        FileNotFoundError: no such file.
    """
    text: Text = {column: [] for column in columns}
    for prefix in spec.split(","):
        found = {column: _read_file(_path(prefix, language)) for column, language in columns.items()}
        counts = {language: len(lines) for language, lines in zip(columns.values(), found.values(), strict=True)}
        if len(set(counts.values())) > 1:
            raise ValueError(f"{prefix} has {counts} lines of text: its files must be aligned")
        for column, lines in found.items():
            text[column] += lines
    return text


def files(spec: str, columns: Mapping[str, str | int], cache: Path) -> list[Path]:
    """The files that `read` reads."""
    return [_path(prefix, language) for prefix in spec.split(",") for language in columns.values()]


def _path(prefix: str, language: str | int) -> Path:
    xml = Path(f"{prefix}.{language}.xml")
    return xml if xml.is_file() else Path(f"{prefix}.{language}")


def _read_file(path: Path) -> list[str]:
    lines = [line for _, line in numbered_lines(path)]
    if path.suffix == ".xml":
        return [unescape(segment).strip() for line in lines for segment in _SEGMENT.findall(line)]
    return [_TAGS.sub("", line).strip() for line in lines if not _LEFT_OUT.match(line)]
