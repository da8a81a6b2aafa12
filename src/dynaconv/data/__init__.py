"""Parallel text: sources, cleaning, splits, tokenizers, cached arrays, and batches by token count."""

import importlib
from typing import TYPE_CHECKING

from .config import DataConfig, TokenizerConfig

if TYPE_CHECKING:
    from .batching import Seq2SeqCollator, TokenBatchSampler
    from .corpus import ParallelText, load_parallel, read_parallel
    from .dataset import PairDataset, PreparedCorpus, prepare
    from .tokenizer import load_tokenizers, save_tokenizers, train_tokenizers

__all__ = [
    "DataConfig",
    "PairDataset",
    "ParallelText",
    "PreparedCorpus",
    "Seq2SeqCollator",
    "TokenBatchSampler",
    "TokenizerConfig",
    "load_parallel",
    "load_tokenizers",
    "prepare",
    "read_parallel",
    "save_tokenizers",
    "train_tokenizers",
]

_MODULES = {
    "batching": {"Seq2SeqCollator", "TokenBatchSampler"},
    "corpus": {"ParallelText", "load_parallel", "read_parallel"},
    "dataset": {"PairDataset", "PreparedCorpus", "prepare"},
    "tokenizer": {"load_tokenizers", "save_tokenizers", "train_tokenizers"},
}


def __getattr__(name: str) -> object:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
