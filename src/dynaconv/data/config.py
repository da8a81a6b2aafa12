"""What decides the data of a training run."""

from dataclasses import dataclass
from typing import Literal


@dataclass
class DataConfig:
    """Parallel text: where it comes from, how it is cleaned and split."""

    format: Literal["tsv", "text", "huggingface", "debian"] = "tsv"
    """tsv: a pair per line; text: two aligned files; huggingface: a dataset; debian: its package descriptions."""
    train: str | None = None
    """tsv: FILE (also .gz, .bz2, .xz). text: PREFIX of PREFIX.de and PREFIX.en. huggingface: NAME[:CONFIG][@SPLIT], or
    a local file or folder. debian: none."""
    valid: str | None = None
    """The same for the validation set (debian: a tsv file); None: held out from the training text."""
    test: str | None = None
    """The same for the test set (debian: a tsv file); None: held out from the training text."""
    source_lang: str = "de"
    target_lang: str = "en"
    source_column: int = 0
    """Of a tsv file, counted from 0."""
    target_column: int = 1
    """Of a tsv file, counted from 0."""
    valid_size: int = 1000
    """Pairs, where they are held out."""
    test_size: int = 1000
    """Pairs, where they are held out."""
    max_words: int = 175
    """Training pairs with a longer side are dropped."""
    max_ratio: float = 1.5
    """Training pairs whose sides differ more than by this factor plus 3 words are dropped."""
    near_duplicates: bool = False
    """Keep training pairs that nearly repeat a held-out one; scores on the held-out text then measure memory too."""
    seed: int = 1
    """Of the choice of held-out pairs."""


@dataclass
class TokenizerConfig:
    """Byte-pair encoding."""

    vocab_size: int = 8000
    """Of each vocabulary, special tokens included."""
    joint: bool = True
    """One vocabulary for both languages."""
    lowercase: bool = False
    """Lower-case all text; translations come out in lower case."""
