"""fairseq's dictionaries: a symbol and its count a line, in the order of ids."""

from pathlib import Path

from ...models.lightconv.tokenization import OVERWRITTEN, SPECIAL_TOKENS


def read_dictionary(path: Path) -> list[str]:
    """The symbols by id, the four special tokens first, as :class:`LightConvTokenizer` takes them.

    Args:
        path: UTF-8; a line may end with `#fairseq:overwrite` where its symbol has been before or is spelled like a
            special token, and then text becomes the later id.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not UTF-8, a line without a count, or a symbol that stands twice.
    """
    symbols = list(SPECIAL_TOKENS)
    seen = set(symbols)
    try:
        lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be text in UTF-8: {error}") from error
    for number, line in enumerate(lines, 1):
        line, flag, _ = line.rstrip().partition(f" {OVERWRITTEN}")
        symbol, _, count = line.rpartition(" ")
        if not symbol or not count.isdecimal():
            raise ValueError(f"{path}, line {number}: must be a symbol and its count; got {line[:80]!r}")
        if symbol in seen and not flag:
            raise ValueError(f"{path}, line {number}: {symbol!r} stands twice; fairseq marks that with {OVERWRITTEN}")
        seen.add(symbol)
        symbols.append(symbol + OVERWRITTEN if symbol in SPECIAL_TOKENS else symbol)
    return symbols
