"""Parallel text from Debian: the translated descriptions of its packages (the Debian Description Translation Project).

The descriptions are index files of the package archive, read through `apt-get` with directories of their own: nothing
is installed, the system's package lists are not touched, and no root is needed.
"""

import json
import logging
import re
import shutil
import subprocess
from pathlib import Path

from .corpus import ParallelText

logger = logging.getLogger("dynaconv")

LANGUAGES = ("de", "fr", "it", "es")


def read_descriptions(source_lang: str, target_lang: str, cache: Path) -> ParallelText:
    """Package descriptions in two languages, one of them English: summaries, and sentences of the long descriptions.

    The first call downloads about 8 MB; later ones read the result from `cache`.

    Raises:
        ValueError: languages that are not offered, or no Debian system.
        RuntimeError: `apt-get` failed; the message is its own.
    """
    other = target_lang if source_lang == "en" else source_lang
    if "en" not in (source_lang, target_lang) or other not in LANGUAGES:
        raise ValueError(f"data.format debian pairs en with {', '.join(LANGUAGES)}; got {source_lang}-{target_lang}")
    stored = cache / f"descriptions.{other}-en.json"
    if not stored.is_file():
        files = _download(other, cache / "apt")
        pairs = align_descriptions(files[other], files["en"], other)
        partial = stored.with_suffix(".partial")
        partial.write_text(json.dumps(pairs, ensure_ascii=False), encoding="utf-8")
        partial.rename(stored)
    pairs = json.loads(stored.read_text(encoding="utf-8"))
    first, second = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    return ParallelText(second, first) if source_lang == "en" else ParallelText(first, second)


def align_descriptions(foreign: list[Path], english: list[Path], language: str) -> list[tuple[str, str]]:
    """Pairs (foreign, English) from `Translation-LANG` index files, in the order of the English ones.

    Descriptions share the md5 sum of the English text. Their summaries are a pair; so are their paragraphs where there
    are equally many, and the sentences of two paragraphs where there are equally many.
    """
    theirs: dict[str, str] = {}
    for path in foreign:
        theirs.update(_parse(path, language))
    pairs: dict[tuple[str, str], None] = {}
    for path in english:
        for md5, text in _parse(path, "en").items():
            if md5 in theirs:
                a, b = _paragraphs(theirs[md5]), _paragraphs(text)
                if len(a) == len(b):
                    for left, right in zip(a, b, strict=True):
                        pairs.update(dict.fromkeys(_sentences(left, right)))
    return list(pairs)


def _download(language: str, directory: Path) -> dict[str, list[Path]]:
    if shutil.which("apt-get") is None:
        raise ValueError("data.format debian needs apt-get, which this system does not have: use tsv, text or huggingface")
    for folder in ("lists/partial", "cache/archives/partial"):
        (directory / folder).mkdir(parents=True, exist_ok=True)
    directory = directory.resolve()
    (directory / "status").touch()
    options = [
        f"Dir::State={directory}", f"Dir::State::lists={directory}/lists", f"Dir::State::status={directory}/status",
        f"Dir::Cache={directory}/cache", "Debug::NoLocking=1", "APT::Sandbox::User=",
        f"Acquire::Languages={language},en", "APT::Update::Post-Invoke=", "APT::Update::Post-Invoke-Success=",
        "Acquire::IndexTargets::deb::Packages::DefaultEnabled=false",
        "Acquire::IndexTargets::deb-src::Sources::DefaultEnabled=false",
        "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
        "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false",
    ]  # fmt: skip
    flags = [flag for option in options for flag in ("-o", option)]
    logger.info("fetching Debian's package descriptions (%s, en)", language)
    _apt(["update", *flags])
    listing = _apt(["indextargets", *flags, "--format", "$(CREATED_BY) $(LANGUAGE) $(FILENAME)"])
    found: dict[str, list[Path]] = {language: [], "en": []}
    for line in listing.splitlines():
        kind, code, path = line.split(" ", 2)
        if kind == "Translations" and code in found and Path(path).is_file():
            found[code].append(Path(path))
    missing = [code for code, paths in found.items() if not paths]
    if missing:
        raise ValueError(f"apt-get found no package descriptions in {', '.join(missing)}: check the system's apt sources")
    return found


def _apt(arguments: list[str]) -> str:
    result = subprocess.run(["apt-get", *arguments], capture_output=True, text=True, check=False)  # noqa: S603, S607
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if line.startswith("E:")] or result.stderr.splitlines()
        raise RuntimeError(f"apt-get {arguments[0]} failed: {lines[0] if lines else 'no message'}")
    return result.stdout


def _parse(path: Path, language: str) -> dict[str, str]:
    """{md5 of the English description: description} of an index file, compressed or not."""
    text = _read(path)
    key, body = re.compile(r"^Description-md5: (\w+)$", re.M), re.compile(rf"^Description-{language}: (.*(?:\n .*)*)", re.M)
    found = {}
    for stanza in text.split("\n\n"):
        md5, description = key.search(stanza), body.search(stanza)
        if md5 and description:
            found[md5[1]] = description[1]
    return found


def _read(path: Path) -> str:
    if path.suffix in (".lz4", ".zst", ".xz", ".gz", ".bz2"):
        helper = subprocess.run(["/usr/lib/apt/apt-helper", "cat-file", str(path)], capture_output=True, check=True)  # noqa: S603
        return helper.stdout.decode("utf-8")
    return path.read_text(encoding="utf-8")


def _paragraphs(description: str) -> list[str]:
    """The summary and the paragraphs; lists and verbatim text (indented lines) end a paragraph and are left out."""
    summary, *lines = description.split("\n")
    paragraphs, current = [summary], []
    for line in [*lines, " ."]:
        if line == " ." or line.startswith("  ") or re.match(r" [-*•o] ", line):
            paragraphs.append(" ".join(current))
            current = []
        else:
            current.append(line.strip())
    return [paragraphs[0], *(p for p in paragraphs[1:] if p)]


def _sentences(left: str, right: str) -> list[tuple[str, str]]:
    pattern = r"(?<=[a-zäöüß\)\"][.!?])\s+(?=[A-ZÄÖÜ])"
    a, b = re.split(pattern, left), re.split(pattern, right)
    return list(zip(a, b, strict=True)) if len(a) == len(b) else [(left, right)]
