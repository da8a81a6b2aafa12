"""Where text comes from: a module for each kind of source, with the same two functions.

`read(spec, columns, cache)` gives the text, and `files(spec, columns, cache)` the files on this machine that it comes
from, also where one does not exist; none for what lies elsewhere. `spec` names a text of this kind, `columns` says what
the source calls each column of the result, and `cache` is a folder for downloads.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from ..text import Text
from . import debian, files, huggingface, iwslt, plain

Columns = Mapping[str, str | int]


class Source(Protocol):
    """What each module has."""

    def read(self, spec: str, columns: Columns, cache: Path) -> Text:
        """The text.

        Raises:
            ValueError: text that cannot be used; the message names where, such as file and line.
            FileNotFoundError: no such file.
            RuntimeError: a download failed.
        """
        ...

    def files(self, spec: str, columns: Columns, cache: Path) -> list[Path]:
        """What `read` reads; it raises the same where it must download something to know."""
        ...


SOURCES: dict[str, Source] = {
    "tsv": files,
    "text": files,
    "plain": plain,
    "huggingface": huggingface,
    "iwslt": iwslt,
    "debian": debian,
}
