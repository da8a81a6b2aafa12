"""Vocabularies of language models: pairs of bytes, or words."""

from collections.abc import Sequence
from typing import Literal

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from .text import BOS, SPECIAL_TOKENS
from .tokenizer import as_pretrained

Kind = Literal["bytes", "words"]


def learn_vocabulary(lines: Sequence[str], kind: Kind, size: int) -> PreTrainedTokenizerFast:
    """Learn a vocabulary.

    Args:
        lines: the text.
        kind: "bytes": byte-pair encoding that begins with the 256 bytes, so that no text has unknown parts. "words":
            what stands between spaces, the most frequent first, as adaptive softmax wants it; others become `<unk>`.
        size: special tokens included; a text with few different words may give fewer.

    Returns:
        A tokenizer. `tokenizer(text)` begins with `<s>`. Text that looks like a special token is text.

    Raises:
        ValueError: pairs of bytes of fewer than 260 tokens.
    """
    special = list(SPECIAL_TOKENS.values())
    if kind == "words":
        tokenizer = Tokenizer(models.WordLevel(unk_token=SPECIAL_TOKENS["unk_token"]))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        trainer = trainers.WordLevelTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    else:
        least = 256 + len(special)
        if size < least:
            raise ValueError(f"tokenizer.vocab_size must be at least {least} for pairs of bytes; got {size}")
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    tokenizer.train_from_iterator(lines, trainer, length=len(lines))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[(SPECIAL_TOKENS["bos_token"], BOS)]
    )
    return as_pretrained(tokenizer, padding_side="left")  # for generate()
