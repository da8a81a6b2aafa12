"""Parallel text from Debian: the translated descriptions of its packages (the Debian Description Translation Project).

The descriptions are index files of the package archive, read through `apt-get` with directories of their own: nothing
is installed, the system's package lists are not touched, and no root is needed.
"""

import json
import logging
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from filelock import FileLock

from ..text import Text

logger = logging.getLogger("dynaconv")

LANGUAGES = ("de", "fr", "it", "es")

_ALIGNMENT = 2  # raise it whenever the same index files would give other pairs
# Given with -c, this is read after the system's configuration: #clear removes what that has set (docker images ask for
# no languages and for compressed lists). Translation files are the only index that is left to fetch.
_APT_CONFIGURATION = """
#clear Acquire::IndexTargets;
#clear Acquire::Languages;
#clear APT::Update;
Acquire::IndexTargets::deb::Translations {{
  MetaKey "$(COMPONENT)/i18n/Translation-$(LANGUAGE)";
  ShortDescription "Translation-$(LANGUAGE)";
  Description "$(RELEASE)/$(COMPONENT) Translation-$(LANGUAGE)";
}};
Acquire::Languages {{ "{language}"; "en"; }};
Acquire::GzipIndexes "false";
APT::Sandbox::User "root";
Dir::State "{directory}";
Dir::State::lists "{directory}/lists";
Dir::State::status "{directory}/status";
Dir::Cache "{directory}/cache";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
"""
# After a sentence's last word or bracket, and before a capital letter.
_SENTENCE_END = re.compile(r"(?<=[^\W\d_]{2}[.!?]|.[)\"”“»][.!?])\s+(?=[\"„«“¿¡]?[A-ZÀ-ÖØ-Þ])")
_LIST_ITEM = re.compile(r" ([-*•+o]|\d+[.)]) ")


def read(spec: str, columns: Mapping[str, str | int], cache: Path) -> Text:
    """Package descriptions in two languages, one of them English: summaries, and sentences of the long descriptions.

    The first call downloads about 8 MB; later ones read the result from `cache`.

    Args:
        spec: not used, there is one text of this kind.
        columns: {column of the result: language}.
        cache: of the result.

    Raises:
        ValueError: languages that are not offered, or no Debian system.
        RuntimeError: `apt-get` failed; the message is its own.
    """
    (stored,) = files(spec, columns, cache)
    pairs = json.loads(stored.read_text(encoding="utf-8"))
    foreign, english = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    return {column: english if language == "en" else foreign for column, language in columns.items()}


def files(spec: str, columns: Mapping[str, str | int], cache: Path) -> list[Path]:
    """The file that `read` reads, downloaded and aligned where it is not there; it raises the same."""
    languages = [str(language) for language in columns.values()]
    if len(languages) != 2 or "en" not in languages or not set(languages) & set(LANGUAGES):
        raise ValueError(
            f"Debian's package descriptions pair en with {', '.join(LANGUAGES)}; got {'-'.join(languages)}"
        )
    (other,) = set(languages) - {"en"}
    folder = cache / "debian"
    folder.mkdir(parents=True, exist_ok=True)
    stored = folder / f"descriptions-{_ALIGNMENT}.{other}-en.json"
    with FileLock(folder / "lock"):
        if not stored.is_file():
            with tempfile.TemporaryDirectory(dir=folder) as directory:
                found = _download(other, Path(directory).resolve())
                pairs = align_descriptions(found[other], found["en"], other)
                partial = Path(directory, stored.name)
                partial.write_text(json.dumps(pairs, ensure_ascii=False), encoding="utf-8")
                partial.rename(stored)
    return [stored]


def align_descriptions(foreign: list[Path], english: list[Path], language: str) -> list[tuple[str, str]]:
    """Unique pairs (foreign, English) from `Translation-LANG` index files, in the order of the English ones.

    Descriptions share the md5 sum of the English text. Where they have equally many paragraphs, summaries and
    paragraphs are pairs; where two paragraphs have equally many sentences, these are. Lists and verbatim text are
    left out.

    Args:
        foreign: uncompressed index files in `language`.
        english: the same in English.
        language: code of the foreign language.
    """
    translations: dict[str, str] = {}
    for path in foreign:
        translations.update(_parse(path, language))
    pairs: dict[tuple[str, str], None] = {}
    for path in english:
        for md5, text in _parse(path, "en").items():
            if md5 in translations:
                a, b = _paragraphs(translations[md5]), _paragraphs(text)
                if len(a) == len(b):
                    for left, right in zip(a, b, strict=True):
                        pairs.update(dict.fromkeys(_sentences(left, right)))
    return list(pairs)


def _download(language: str, directory: Path) -> dict[str, list[Path]]:
    """Fetch index files into an empty directory: {language: files}."""
    if shutil.which("apt-get") is None:
        raise ValueError(
            "Debian's package descriptions need apt-get, which this system does not have: give text of your own"
        )
    (directory / "lists" / "partial").mkdir(parents=True)
    (directory / "status").touch()
    configuration = directory / "apt.conf"
    configuration.write_text(_APT_CONFIGURATION.format(language=language, directory=directory), encoding="utf-8")
    logger.info("fetching Debian's package descriptions (%s, en)", language)
    complaint = _apt("update", "-c", str(configuration)).stderr
    listing = _apt(
        "indextargets", "-c", str(configuration), "--format", "$(LANGUAGE) $(FILENAME)", "Created-By: Translations"
    )
    found: dict[str, list[Path]] = {language: [], "en": []}
    for line in listing.stdout.splitlines():
        code, _, path = line.partition(" ")
        if code in found and Path(path).is_file():
            found[code].append(Path(path))
    missing = [code for code, paths in found.items() if not paths]
    if missing:
        # A server that does not answer is no error to `apt-get update`, only a complaint.
        reason = f" ({complaint.strip().splitlines()[0]})" if complaint.strip() else ""
        raise RuntimeError(
            f"apt-get found no package descriptions in {', '.join(missing)}{reason}: check the network, and that the "
            "system's apt sources name a Debian archive"
        )
    return found


def _apt(*arguments: str) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(["apt-get", *arguments], capture_output=True, text=True, check=False)  # noqa: S603, S607
    if result.returncode:
        lines = result.stderr.strip().splitlines() or ["no message"]
        raise RuntimeError(f"apt-get {arguments[0]} failed: {lines[-1]}")
    return result


def _parse(path: Path, language: str) -> dict[str, str]:
    """{md5 of the English description: description} of an index file."""
    key = re.compile(r"^Description-md5: (\w+)$", re.M)
    body = re.compile(rf"^Description-{language}: (.*(?:\n .*)*)", re.M)
    found = {}
    for stanza in path.read_text(encoding="utf-8").split("\n\n"):
        md5, description = key.search(stanza), body.search(stanza)
        if md5 and description:
            found[md5[1]] = description[1]
    return found


def _paragraphs(description: str) -> list[str]:
    """The summary and the paragraphs; list items and verbatim (indented) lines end a paragraph and are left out."""
    summary, *lines = description.split("\n")
    paragraphs, current = [], []
    for line in [*lines, " ."]:
        if line == " ." or line.startswith("  ") or _LIST_ITEM.match(line):
            paragraphs.append(" ".join(current))
            current = []
        else:
            current.append(line.strip())
    return [summary, *filter(None, paragraphs)]


def _sentences(left: str, right: str) -> list[tuple[str, str]]:
    a, b = _SENTENCE_END.split(left), _SENTENCE_END.split(right)
    return list(zip(a, b, strict=True)) if len(a) == len(b) else [(left, right)]
