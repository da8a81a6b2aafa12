"""Words cut by subword-nmt's byte-pair encoding and numbered by a dictionary: the text of the 2019 paper's models."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizer

VOCABULARY, CODES = "vocab.txt", "bpe_codes.txt"
CONTINUED = "@@"
"""Ends a piece that is not the last of its word."""
OVERWRITTEN = "#fairseq:overwrite"
"""Ends a symbol of the vocabulary that is spelled like a special token, but is text."""
SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")
_END = "</w>"
_KEPT = 1 << 16  # words whose pieces are remembered


class BytePairEncoding:
    """The merges that subword-nmt learned (Sennrich, Haddow and Birch, ACL 2016).

    Args:
        codes: content of its file: a line `#version: 0.2` (without one: 0.1), then a merge a line, earliest first. With
            0.1 the end of a word is a symbol of its own, with 0.2 a part of the last character.

    Raises:
        ValueError: another version, or a line that is not a pair.
    """

    def __init__(self, codes: str):
        lines = codes.rstrip("\n").split("\n")
        version = lines.pop(0).split()[-1] if codes.startswith("#version:") else "0.1"
        if version not in ("0.1", "0.2"):
            raise ValueError(f"BPE codes must be of version 0.1 or 0.2 of subword-nmt; got {version}")
        self.end_is_symbol = version == "0.1"
        self.ranks: dict[tuple[str, ...], int] = {}
        for rank, line in enumerate(lines):
            pair = tuple(line.strip("\r ").split(" "))
            if len(pair) != 2:
                raise ValueError(f"a line of the BPE codes must be two symbols, as subword-nmt writes it; got {line!r}")
            self.ranks.setdefault(pair, rank)
        self._known: dict[str, list[str]] = {}

    def split(self, word: str) -> list[str]:
        """The pieces of a word; together they are the word."""
        if word not in self._known:
            if len(self._known) >= _KEPT:
                self._known.clear()
            self._known[word] = [word] if len(word) == 1 else self._split(word)
        return self._known[word]

    def _split(self, word: str) -> list[str]:
        symbols = [*word, _END] if self.end_is_symbol else [*word[:-1], word[-1] + _END]
        while len(symbols) > 1:
            best = min(pairwise(symbols), key=lambda pair: self.ranks.get(pair, math.inf))
            if best not in self.ranks:
                break
            symbols = _merge(symbols, best)
        symbols[-1] = symbols[-1].removesuffix(_END)
        return symbols if symbols[-1] else symbols[:-1]


def _merge(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    """Join every occurrence of a pair, from the left."""
    merged, i = [], 0
    while i < len(symbols):
        width = 2 if tuple(symbols[i : i + 2]) == pair else 1
        merged.append("".join(symbols[i : i + width]))
        i += width
    return merged


class LightConvTokenizer(PreTrainedTokenizer):
    """Text with spaces between words to the ids of a dictionary, and back.

    Words are as they come: text has to be tokenised as the text that the model was trained on (by Moses, for the
    published models). `tokenizer(text)` ends with `</s>`, and text that looks like a special token is text. The library
    `tokenizers` cannot express it: a piece that the dictionary lacks is `<unk>` however it was merged, and in codes of
    version 0.1 the end of a word is a symbol that vanishes.

    Args:
        vocab_file: a symbol a line, in the order of ids, the first four <s>, <pad>, </s> and <unk>. Where a symbol
            stands twice, the later one is what text becomes.
        codes_file: of subword-nmt; None: text is in pieces already, and stays in pieces when it is decoded.
        continued: for language models, where `</s>` stands before the text and not behind it.

    Raises:
        ValueError: other special tokens, or what :class:`BytePairEncoding` refuses.
    """

    vocab_files_names = {"vocab_file": VOCABULARY, "codes_file": CODES}  # noqa: RUF012
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(
        self, vocab_file: str | Path, codes_file: str | Path | None = None, continued: bool = False, **options: Any
    ):
        self._symbols = _read(vocab_file).removesuffix("\n").split("\n")
        if tuple(self._symbols[:4]) != SPECIAL_TOKENS:
            raise ValueError(f"{vocab_file} must start with {', '.join(SPECIAL_TOKENS)}; got {self._symbols[:4]}")
        self._ids = {symbol: i for i, symbol in enumerate(self._symbols)}
        self._codes = None if codes_file is None else _read(codes_file)
        self._encoding = None if self._codes is None else BytePairEncoding(self._codes)
        names = ("bos_token", "pad_token", "eos_token", "unk_token")
        defaults = {
            **dict(zip(names, SPECIAL_TOKENS, strict=True)),
            **({"bos_token": "</s>"} if continued else {}),
            "clean_up_tokenization_spaces": False,
            "padding_side": "right",
            "special_tokens_pattern": "bos" if continued else "eos",
            "split_special_tokens": True,
        }
        super().__init__(continued=continued, **{**defaults, **options})

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return len(self._symbols)

    @property
    def has_codes(self) -> bool:
        """Whether words are cut into pieces here, and joined again."""
        return self._encoding is not None

    def get_vocab(self) -> dict[str, int]:
        """{symbol: id}."""
        return {**self._ids, **self.added_tokens_encoder}

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Pieces joined to words, and words to text."""
        text = " ".join(token.removesuffix(OVERWRITTEN) for token in tokens)
        return text if self._encoding is None else f"{text} ".replace(f"{CONTINUED} ", "").rstrip(" ")

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write the vocabulary, and the codes if there are any; returns the paths."""
        contents = {VOCABULARY: "".join(f"{symbol}\n" for symbol in self._symbols)}
        if self._codes is not None:
            contents[CODES] = self._codes
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        paths = {Path(save_directory) / f"{prefix}{name}": content for name, content in contents.items()}
        for path, content in paths.items():
            path.write_bytes(content.encode())
        return tuple(map(str, paths))

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        if self._encoding is None:
            pieces = text.split()
        else:
            # subword-nmt cuts at spaces, and fairseq what it wrote at any white space.
            words = [self._encoding.split(word) for word in text.strip("\r\n ").split(" ") if word]
            pieces = " ".join(f"{CONTINUED} ".join(word) for word in words).split()
        return [piece + OVERWRITTEN if piece in SPECIAL_TOKENS else piece for piece in pieces]

    def _convert_token_to_id(self, token: str) -> int:
        return self._ids.get(token, SPECIAL_TOKENS.index("<unk>"))

    def _convert_id_to_token(self, index: int) -> str:
        return self._symbols[index]


def _read(path: str | Path) -> str:
    """Text with its line ends as they are: symbols may contain other white space."""
    return Path(path).read_bytes().decode()
