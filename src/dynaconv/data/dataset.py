"""Tokenized corpora as memory-mapped arrays, prepared once."""

import dataclasses
import hashlib
import json
import logging
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from .config import DataConfig, TokenizerConfig
from .corpus import ParallelText, load_parallel
from .tokenizer import load_tokenizers, save_tokenizers, train_tokenizers

logger = logging.getLogger("dynaconv")

_FORMAT = 1  # raise it whenever the same configuration would give other arrays
_SPLITS = ("train", "valid", "test")
_SIDES = ("source", "target")


class PairDataset(Dataset):
    """Token ids of sentence pairs, each side ending with `</s>`, read from memory-mapped arrays.

    Items are {"input_ids": [S], "labels": [T]}, unsigned integers. `source_lengths` and `target_lengths` are [N] int64.
    """

    def __init__(self, directory: Path, split: str):
        self._tokens = {side: np.load(directory / f"{split}.{side}.npy", mmap_mode="r") for side in _SIDES}
        self._offsets = {side: np.load(directory / f"{split}.{side}.offsets.npy") for side in _SIDES}
        self.source_lengths, self.target_lengths = (np.diff(self._offsets[side]) for side in _SIDES)

    def __len__(self) -> int:
        return len(self.source_lengths)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        source, target = (
            np.array(self._tokens[side][self._offsets[side][index] : self._offsets[side][index + 1]]) for side in _SIDES
        )
        return {"input_ids": source, "labels": target}


@dataclasses.dataclass
class PreparedCorpus:
    """Tokenizers, token arrays of the three splits, and the held-out text."""

    source_tokenizer: PreTrainedTokenizerFast
    target_tokenizer: PreTrainedTokenizerFast
    train: PairDataset
    valid: PairDataset
    test: PairDataset
    text: dict[str, ParallelText]
    directory: Path


def cache_directory() -> Path:
    """$DYNACONV_CACHE, or dynaconv in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dynaconv"
    return Path(os.environ.get("DYNACONV_CACHE", default))


def prepare(data: DataConfig, tokenizer: TokenizerConfig, cache_dir: Path | None = None) -> PreparedCorpus:
    """Read, clean, split and tokenize parallel text, or find the result of an earlier call with the same input.

    The result lies in `cache_dir`/prepared, in a folder named by the configurations and by path, size and modification
    time of the input files. It gets this name when it is complete.

    Args:
        data: the text.
        tokenizer: the vocabulary.
        cache_dir: None: :func:`cache_directory`.

    Raises:
        ValueError: text that cannot be used, see :func:`dynaconv.data.corpus.load_parallel`.
        FileNotFoundError: no such file.
    """
    cache_dir = cache_dir or cache_directory()
    final = cache_dir / "prepared" / _fingerprint(data, tokenizer)
    if not final.is_dir():
        final.parent.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix="incomplete-", dir=final.parent))
        try:
            _write(load_parallel(data, cache_dir), tokenizer, staged)
            try:
                staged.rename(final)
            except OSError:
                if not final.is_dir():  # else another process was faster
                    raise
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    text = {split: ParallelText(*json.loads((final / f"{split}.json").read_text("utf-8"))) for split in _SPLITS[1:]}
    train, valid, test = (PairDataset(final, split) for split in _SPLITS)
    source, target = load_tokenizers(final)
    return PreparedCorpus(source, target, train, valid, test, text, final)


def _fingerprint(data: DataConfig, tokenizer: TokenizerConfig) -> str:
    files = []
    for spec in filter(None, (data.train, data.valid, data.test)):
        paths = [spec, f"{spec}.{data.source_lang}", f"{spec}.{data.target_lang}"]
        for path in map(Path, paths):
            if path.is_file():
                stat = path.stat()
                files.append([str(path.resolve()), stat.st_size, stat.st_mtime_ns])
    key = [_FORMAT, dataclasses.asdict(data), dataclasses.asdict(tokenizer), files]
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]


def _write(corpus: dict[str, ParallelText], config: TokenizerConfig, directory: Path) -> None:
    logger.info("learning a vocabulary of %d from %s pairs", config.vocab_size, f"{len(corpus['train'].source):,}")
    tokenizers = train_tokenizers(corpus["train"], config)
    save_tokenizers(*tokenizers, directory)
    for split, text in corpus.items():
        for side, lines, tokenizer in zip(_SIDES, text, tokenizers, strict=True):
            ids = _tokenize(lines, tokenizer, f"tokenizing {split} {side}")
            lengths = [len(row) for row in ids]
            dtype = np.uint16 if len(tokenizer) <= 2**16 else np.uint32
            np.save(directory / f"{split}.{side}.npy", np.concatenate([np.asarray(row, dtype) for row in ids]))
            np.save(directory / f"{split}.{side}.offsets.npy", np.cumsum([0, *lengths], dtype=np.int64))
        if split != "train":
            (directory / f"{split}.json").write_text(json.dumps(text, ensure_ascii=False), encoding="utf-8")


def _tokenize(lines: list[str], tokenizer: PreTrainedTokenizerFast, title: str) -> list[list[int]]:
    ids: list[list[int]] = []
    with tqdm(total=len(lines), desc=title, unit="line", disable=len(lines) < 50000) as bar:
        for start in range(0, len(lines), 10000):
            chunk = lines[start : start + 10000]
            ids += [encoding.ids for encoding in tokenizer.backend_tokenizer.encode_batch_fast(chunk)]
            bar.update(len(chunk))
    return ids
