"""Tokenized corpora as memory-mapped arrays, prepared once."""

import dataclasses
import hashlib
import json
import logging
import os
import shutil
import uuid
from pathlib import Path

import numpy as np
from filelock import FileLock
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from .config import DataConfig, TokenizerConfig
from .corpus import ParallelText, load_parallel, source_files
from .tokenizer import load_tokenizers, save_tokenizers, train_tokenizers

logger = logging.getLogger("dynaconv")

_FORMAT = 2  # raise it whenever the same configuration would give other arrays
_SPLITS = ("train", "valid", "test")
_SIDES = ("source", "target")


class PairDataset(Dataset):
    """Token ids of sentence pairs, each side ending with `</s>`, read from memory-mapped arrays.

    Items are {"input_ids": [S], "labels": [T]}, uint16 (uint32 for vocabularies over 65,536). `source_lengths` and
    `target_lengths` are [N] int32.

    Args:
        directory: of a :class:`PreparedCorpus`.
        split: train, valid or test.
    """

    def __init__(self, directory: Path, split: str):
        self._arguments = directory, split
        self._tokens = [np.load(directory / f"{split}.{side}.npy", mmap_mode="r") for side in _SIDES]
        self._offsets = [np.load(directory / f"{split}.{side}.offsets.npy", mmap_mode="r") for side in _SIDES]
        self.source_lengths, self.target_lengths = (np.diff(offsets).astype(np.int32) for offsets in self._offsets)

    def __reduce__(self) -> tuple:
        # Pickled, a memory map would become a copy of the corpus in every spawned worker.
        return PairDataset, self._arguments

    def __len__(self) -> int:
        return len(self.source_lengths)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        source, target = (
            np.array(tokens[offsets[index] : offsets[index + 1]])
            for tokens, offsets in zip(self._tokens, self._offsets, strict=True)
        )
        return {"input_ids": source, "labels": target}


@dataclasses.dataclass
class PreparedCorpus:
    """Tokenizers, token arrays of the three splits, and the held-out text."""

    source_tokenizer: PreTrainedTokenizerFast
    target_tokenizer: PreTrainedTokenizerFast
    """The same object as `source_tokenizer` where the languages share a vocabulary."""
    train: PairDataset
    valid: PairDataset
    test: PairDataset
    text: dict[str, ParallelText]
    """{"valid", "test"}, in the order of the arrays."""
    directory: Path

    def digest(self) -> str:
        """SHA-256 of everything in the corpus, 64 hexadecimal digits: equal where training would see the same."""
        total = hashlib.sha256()
        for path in sorted(self.directory.iterdir()):
            total.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
        return total.hexdigest()


def cache_directory() -> Path:
    """$DYNACONV_CACHE, or dynaconv in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dynaconv"
    return Path(os.environ.get("DYNACONV_CACHE", default))


def prepare(data: DataConfig, tokenizer: TokenizerConfig, cache_dir: Path | None = None) -> PreparedCorpus:
    """Read, clean, split and tokenize parallel text, or find the result of an earlier call with the same input.

    The result lies in `cache_dir`/prepared, in a folder named by the configurations and by path, size and modification
    time of the input files. It gets this name when it is complete. Of several processes one works, the others wait.

    Args:
        data: the text.
        tokenizer: the vocabulary.
        cache_dir: None: :func:`cache_directory`.

    Raises:
        ValueError: text that cannot be used, see :func:`dynaconv.data.corpus.load_parallel`.
        FileNotFoundError: no such file.
        RuntimeError: a download failed.
    """
    cache_dir = cache_dir or cache_directory()
    final = cache_dir / "prepared" / _fingerprint(data, tokenizer, cache_dir)
    if not final.is_dir():
        final.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(cache_dir / f"{final.name}.lock"):
            if not final.is_dir():
                _publish(data, tokenizer, cache_dir, final)
    text = {split: ParallelText(*json.loads((final / f"{split}.json").read_text("utf-8"))) for split in _SPLITS[1:]}
    train, valid, test = (PairDataset(final, split) for split in _SPLITS)
    source, target = load_tokenizers(final)
    return PreparedCorpus(source, target, train, valid, test, text, final)


def _publish(data: DataConfig, tokenizer: TokenizerConfig, cache_dir: Path, final: Path) -> None:
    """Write under another name, then rename; what a killed process left of an earlier attempt goes first."""
    prefix = f"{final.name}.incomplete-"
    for leftover in final.parent.glob(f"{prefix}*"):
        shutil.rmtree(leftover)
    staged = final.parent / f"{prefix}{uuid.uuid4().hex}"
    staged.mkdir()
    try:
        _write(load_parallel(data, cache_dir), tokenizer, staged)
        staged.rename(final)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _fingerprint(data: DataConfig, tokenizer: TokenizerConfig, cache_dir: Path) -> str:
    files = []
    for path in sorted(source_files(data, cache_dir)):
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
            tokens, lengths = _tokenize(lines, tokenizer, f"tokenizing {split} {side}")
            np.save(directory / f"{split}.{side}.npy", tokens)
            np.save(directory / f"{split}.{side}.offsets.npy", np.cumsum([0, *lengths], dtype=np.int64))
        if split != "train":
            (directory / f"{split}.json").write_text(json.dumps(text, ensure_ascii=False), encoding="utf-8")


def _tokenize(lines: list[str], tokenizer: PreTrainedTokenizerFast, title: str) -> tuple[np.ndarray, list[int]]:
    """Ids of all lines one after the other, and the number of each line's."""
    dtype = np.uint16 if len(tokenizer) <= 2**16 else np.uint32
    parts, lengths = [], []
    with tqdm(total=len(lines), desc=title, unit="line", disable=len(lines) < 50000) as bar:
        for start in range(0, len(lines), 10000):
            rows = [
                encoding.ids for encoding in tokenizer.backend_tokenizer.encode_batch_fast(lines[start : start + 10000])
            ]
            parts.append(np.concatenate([np.array(row, dtype) for row in rows]))
            lengths += map(len, rows)
            bar.update(len(rows))
    return np.concatenate(parts), lengths
