"""What the project knows of transformers, which it looks at as it is there, not at version numbers.

- :mod:`.names`: arguments and outputs.
- :mod:`.caches`: layers of caches with states of convolutions and recurrences.
- :mod:`.masks`: masks, padding and packed sequences.
"""

from .caches import (
    ConvolvedLayer,
    ConvStateLayer,
    DecoderGenerationMixin,
    NoPagedCache,
    TokenCounter,
    attach_decoder_states,
    attach_seq2seq_states,
    attach_states,
    decoder_cache,
    own_cache,
)
from .masks import Sequences, create_causal_mask, find_sequences
from .names import (
    CACHE,
    CACHE_NAMES,
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    MoeCausalLMOutputWithPast,
    MoeModelOutputWithPast,
    Seq2SeqLMOutput,
    Seq2SeqModelOutput,
    check_arguments,
    find_cache,
    note_version,
    one_cache,
    output,
)

__all__ = [
    "CACHE",
    "CACHE_NAMES",
    "BaseModelOutputWithPast",
    "CausalLMOutputWithPast",
    "ConvStateLayer",
    "ConvolvedLayer",
    "DecoderGenerationMixin",
    "MoeCausalLMOutputWithPast",
    "MoeModelOutputWithPast",
    "NoPagedCache",
    "Seq2SeqLMOutput",
    "Seq2SeqModelOutput",
    "Sequences",
    "TokenCounter",
    "attach_decoder_states",
    "attach_seq2seq_states",
    "attach_states",
    "check_arguments",
    "create_causal_mask",
    "decoder_cache",
    "find_cache",
    "find_sequences",
    "note_version",
    "one_cache",
    "output",
    "own_cache",
]
