"""Byte-pair encoding, trained with `tokenizers` and kept as Hugging Face tokenizers."""

from collections import Counter
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from .config import TokenizerConfig
from .corpus import ParallelText

SPECIAL_TOKENS = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}  # ids 0 to 3
BOS, PAD, EOS, UNK = range(4)


def train_tokenizers(
    text: ParallelText, config: TokenizerConfig
) -> tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast]:
    """Learn a vocabulary for each language, or one for both.

    Characters beyond a third of the vocabulary, the rarest, become `<unk>`. A text with few different words may give
    a smaller vocabulary than asked for.

    Returns:
        (source, target); the same object where they share a vocabulary. `tokenizer(text)` ends with `</s>`. Text that
        looks like a special token is text.

    Raises:
        ValueError: the vocabulary is too small for the alphabet of the text.
    """
    if config.joint:
        joint = _train(text.source + text.target, config)
        return joint, joint
    return _train(text.source, config), _train(text.target, config)


def save_tokenizers(source: PreTrainedTokenizerFast, target: PreTrainedTokenizerFast, directory: Path) -> None:
    """Write the tokenizers of a model: into its folder, or two folders in it where they differ."""
    if source is target:
        source.save_pretrained(directory)
    else:
        source.save_pretrained(directory / "source_tokenizer")
        target.save_pretrained(directory / "target_tokenizer")


def load_tokenizers(directory: Path) -> tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast]:
    """Read what :func:`save_tokenizers` wrote.

    Raises:
        FileNotFoundError: no tokenizer there.
    """
    if (directory / "source_tokenizer").is_dir():
        source, target = (
            PreTrainedTokenizerFast.from_pretrained(directory / f"{side}_tokenizer") for side in ("source", "target")
        )
        return source, target
    if not (directory / "tokenizer.json").is_file():
        raise FileNotFoundError(
            f"no tokenizer in {directory} (tokenizer.json, or source_tokenizer and target_tokenizer)"
        )
    joint = PreTrainedTokenizerFast.from_pretrained(directory)
    return joint, joint


def _train(lines: list[str], config: TokenizerConfig) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL_TOKENS["unk_token"]))
    steps: list[normalizers.Normalizer] = [
        normalizers.NFC(),
        normalizers.Replace(Regex(r"\s+"), " "),
        normalizers.Strip(),
    ]
    if config.lowercase:
        steps.append(normalizers.Lowercase())
    tokenizer.normalizer = normalizers.Sequence(steps)
    # Words, digits and other signs apart, each sign for itself: "lib64-dev)." must not become one token.
    pieces = pre_tokenizers.Split(Regex(r"▁?\p{L}[\p{L}\p{M}]*|▁?\p{N}|▁?[^\p{L}\p{N}▁]|▁"), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(split=False), pieces])
    tokenizer.decoder = decoders.Metaspace()
    sample = "".join(lines[:: max(1, len(lines) // 20000)])  # of both languages: one stands after the other
    characters = Counter(sample.lower() if config.lowercase else sample)
    common = sum(count > characters.total() / 10000 for count in characters.values())
    limit = config.vocab_size // 3  # characters; rarer ones become <unk>
    if common > limit:
        raise ValueError(
            f"tokenizer.vocab_size {config.vocab_size} is too small for text with {common} common characters: "
            f"use at least {3 * common}, better thousands"
        )
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=list(SPECIAL_TOKENS.values()),
        limit_alphabet=limit,
        show_progress=False,  # it writes to standard output
    )
    tokenizer.train_from_iterator(lines, trainer, length=len(lines))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[(SPECIAL_TOKENS["eos_token"], EOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
        model_input_names=["input_ids", "attention_mask"],
        **SPECIAL_TOKENS,
    )
