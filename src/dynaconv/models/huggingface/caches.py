"""Caches of transformers, whose layers also keep the states of convolutions and recurrences.

Dims: B batch, T tokens.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    EncoderDecoderCache,
    LinearAttentionLayer,
    StaticLayer,
    StaticSlidingWindowLayer,
)

from ...nn import StreamStates
from .names import CACHE, find_cache


class ConvolvedLayer(StreamStates):
    """Mixed into a cache layer: the states of convolutions and recurrences share what happens to keys and values."""

    def activate_past_recording(self) -> None:
        """Keep what :meth:`crop` needs."""
        self.record_past = True
        parent: Any = super()
        if hasattr(parent, "activate_past_recording"):
            parent.activate_past_recording()

    def crop(self, tokens_to_remove: int) -> None:
        """Take `-tokens_to_remove` tokens back."""
        self.drop(-tokens_to_remove)
        super().crop(tokens_to_remove)  # pyrefly: ignore [missing-attribute]

    def reset(self) -> None:
        """Back to the first token."""
        self.clear()
        super().reset()  # pyrefly: ignore [missing-attribute]

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Row i continues what was row `beam_idx[i]`."""
        self.select_rows(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))
        super().reorder_cache(beam_idx)  # pyrefly: ignore [missing-attribute]

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices`."""
        self.select_rows(lambda tensor: tensor[indices.to(tensor.device)])
        super().batch_select_indices(indices)  # pyrefly: ignore [missing-attribute]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        self.select_rows(lambda tensor: tensor.repeat_interleave(repeats, dim=0))
        super().batch_repeat_interleave(repeats)  # pyrefly: ignore [missing-attribute]

    @property
    def is_croppable(self) -> bool:
        """Whether tokens can be taken back."""
        return not self.recurrent and super().is_croppable  # pyrefly: ignore [missing-attribute]

    @property
    def is_compileable(self) -> bool:
        """Whether every tensor keeps its size and place, as a compiled call needs."""
        return not self.record_past and super().is_compileable  # pyrefly: ignore [missing-attribute]


class TokenCounter(CacheLayerMixin):
    """A layer without keys and values, which counts the tokens it has seen.

    transformers' own convolution layers count none, so that `generate()` fails on a model that has only those.
    """

    is_croppable = True
    is_sliding = True  # masks are sized by the first layer that is not, and this one holds no keys
    supports_early_init = False

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Not for a layer without attention.

        Raises:
            TypeError: always.
        """
        raise TypeError("this layer has no attention and caches neither keys nor values")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the tokens a mask would cover."""
        return self.seen + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens seen."""
        return self.seen

    def get_max_length(self) -> int:
        """No limit."""
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        """Take `-tokens_to_remove` tokens back."""
        self.seen += tokens_to_remove

    def reset(self) -> None:
        """Forget everything."""
        self.seen = 0

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Nothing to do."""

    def batch_select_indices(self, indices: Tensor) -> None:
        """Nothing to do."""

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Nothing to do."""


class ConvStateLayer(ConvolvedLayer, TokenCounter):
    """States of convolutions and recurrences, and the number of tokens seen.

    Args:
        static: whether it is in a static cache, for which generation makes masks and compiles the model.
    """

    def __init__(self, static: bool = False) -> None:
        TokenCounter.__init__(self)
        StreamStates.__init__(self)
        self.static = static

    @property
    def is_compileable(self) -> bool:  # pyrefly: ignore [bad-override]
        """As the other layers of its cache."""
        return self.static and not self.record_past


def _convolved(layer: type) -> type:
    """A module-level class, so that caches can be pickled and compiled functions can make them."""
    # Without a layer type of its own, by which transformers would make it in the place of the original.
    cls = type(f"Convolved{layer.__name__}", (ConvolvedLayer, layer), {"__module__": __name__, "_layer_type": None})
    globals()[cls.__name__] = cls
    return cls


_CONVOLVED: dict[type, type] = {
    layer: _convolved(layer)
    for layer in (DynamicLayer, DynamicSlidingWindowLayer, StaticLayer, StaticSlidingWindowLayer, LinearAttentionLayer)
}


def attach_states(cache: Any, index: int) -> StreamStates:
    """Let a layer of a cache keep states of convolutions beside what it has.

    Args:
        cache: of any kind that `generate()` makes for a decoder: dynamic, sliding-window, static, offloaded, quantized,
            with layers of recurrences, of attention, of both, or without anything of their own.
        index: of the layer; a cache that adds layers as they come gets it now.

    Returns:
        The layer.

    Raises:
        TypeError: not a cache.
        ValueError: the cache holds other tokens than its convolutions have seen.
    """
    # Where layers share keys and values, some versions of transformers make none for those that only read them.
    while len(cache.layers) <= index:
        make = cache.layer_class_to_replicate
        cache.layers.append(ConvStateLayer(_is_static(cache)) if make is None else make())
    layer = cache.layers[index]
    kind = type(layer)
    counts = isinstance(layer, CacheLayerMixin) and layer.is_initialized and not isinstance(layer, TokenCounter)
    seen: Any = layer.get_seq_length() if counts else 0
    if isinstance(layer, ConvolvedLayer):
        if counts and isinstance(seen, int) and not torch.compiler.is_compiling():
            layer.check(seen)
        return layer
    if not torch.compiler.is_compiling() and int(seen) > 0:
        raise ValueError(
            f"the cache holds {int(seen)} tokens that the short convolutions have not seen: begin with an empty cache"
        )
    if kind not in _CONVOLVED:
        _CONVOLVED[kind] = _convolved(kind)
    convolved: Any = object.__new__(_CONVOLVED[kind])
    record_past = any(getattr(other, "record_past", False) for other in cache.layers)
    convolved.__dict__ = layer.__dict__
    StreamStates.__init__(convolved)
    convolved.record_past = record_past
    cache.layers[index] = convolved
    return convolved


def own_cache(cache: Any) -> Cache:
    """What a cache keeps of a decoder's own tokens; raises TypeError unless it is a transformers Cache."""
    if not isinstance(cache, Cache):
        raise TypeError(
            f"{CACHE} must be a transformers Cache, say DynamicCache(config=model.config); got {type(cache).__name__}"
        )
    return cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache


def check_cache(cache: Any) -> None:
    """Raise TypeError unless this is a cache of a decoder on its own."""
    if isinstance(cache, EncoderDecoderCache):
        raise TypeError(f"{CACHE} must be of a decoder on its own; got {type(cache).__name__}")
    own_cache(cache)


def decoder_cache(attention: Sequence[bool]) -> DynamicCache:
    """An empty cache for a decoder: for every layer keys and values where it has attention, and states."""
    cache = DynamicCache()
    attach_decoder_states(cache, attention)
    return cache


def attach_decoder_states(cache: Any, attention: Sequence[bool]) -> None:
    """Let a cache made for attention alone serve a decoder in which not every layer has it.

    Raises:
        TypeError: as :func:`attach_states`.
        ValueError: as :func:`attach_states`.
    """
    check_cache(cache)
    static = _is_static(cache)
    for index, has in enumerate(attention):
        states = attach_states(cache, index)
        if not has and not isinstance(states, TokenCounter):
            cache.layers[index] = ConvStateLayer(static)


class NoPagedCache:
    """Mixed into models with states that a paged cache has no place for."""

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> None:
        """Not for convolutions and recurrences.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(f"{type(self).__name__} does not work with continuous batching: use generate()")


class DecoderGenerationMixin(NoPagedCache, GenerationMixin):
    """`generate()` of a language model whose `model` says in `attention` which of its layers have attention."""

    model: Any

    # pyrefly: ignore [bad-override]  (positional arguments are passed on by position)
    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        prepare: Any = super()._prepare_cache_for_generation
        prepare(generation_config, model_kwargs, *args, **kwargs)
        cache = find_cache(model_kwargs)
        if cache is not None:
            attach_decoder_states(cache, self.model.attention)
            if generation_config.is_assistant:
                cache.activate_past_recording()


def attach_seq2seq_states(cache: Any, attention: Sequence[bool]) -> None:
    """Let a cache made for an encoder-decoder with attention alone serve a decoder in which not every layer has it.

    Raises:
        TypeError: not an EncoderDecoderCache.
        ValueError: as :func:`attach_states`; a static cache, whose keys are more than the tokens.
    """
    if not isinstance(cache, EncoderDecoderCache):
        raise TypeError(f"{CACHE} must be an EncoderDecoderCache; got {type(cache).__name__}")
    parts = (cache.self_attention_cache, cache.cross_attention_cache)
    if any(map(_is_static, parts)):
        raise ValueError(f"{CACHE} must be of dynamic caches: this decoder has no masks for static ones")
    attach_decoder_states(cache.self_attention_cache, attention)


def _is_static(cache: Any) -> bool:
    return any(isinstance(layer, StaticLayer) for layer in cache.layers)


def past_length(cache: Any) -> Any:
    """Tokens that a cache of a decoder holds: a number, a tensor where it is static, 0 without a cache.

    None where all layers are of recurrences, which count none.
    """
    if cache is None or not cache.layers:
        return 0
    attention = any(isinstance(layer, CacheLayerMixin) for layer in cache.layers)
    return cache.get_seq_length() if attention else None
