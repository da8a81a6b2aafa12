"""Parallel text: sources, cleaning, splits, tokenizers, cached arrays, and batches by token count."""

from .config import DataConfig, TokenizerConfig

__all__ = ["DataConfig", "TokenizerConfig"]
