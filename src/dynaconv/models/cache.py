"""What decoders keep between tokens, as Hugging Face caches. The only file that touches cache internals."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    EncoderDecoderCache,
    StaticLayer,
    StaticSlidingWindowLayer,
)

from ..nn import StreamStates


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


class TokenCounter(CacheLayerMixin):
    """A layer without keys and values, which counts the tokens it has seen.

    transformers' own convolution layers count none, so that `generate()` fails on a model that has only those.
    """

    is_croppable = True
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
    """States of convolutions and recurrences, and the number of tokens seen."""

    def __init__(self) -> None:
        TokenCounter.__init__(self)
        StreamStates.__init__(self)


def _convolved(layer: type) -> type:
    """A module-level class, so that caches can be pickled and compiled functions can make them."""
    cls = type(f"Convolved{layer.__name__}", (ConvolvedLayer, layer), {"__module__": __name__})
    globals()[cls.__name__] = cls
    return cls


_CONVOLVED: dict[type, type] = {
    layer: _convolved(layer)
    for layer in (DynamicLayer, DynamicSlidingWindowLayer, StaticLayer, StaticSlidingWindowLayer)
}


def attach_states(cache: Any, index: int) -> StreamStates:
    """Let a layer of a cache keep states of convolutions beside its keys and values.

    Args:
        cache: of any kind that `generate()` makes for a decoder: dynamic, sliding-window, static, offloaded, quantized.
        index: of the layer; a cache that adds layers as they come gets it now.

    Returns:
        The layer.

    Raises:
        TypeError: not a cache with keys and values.
        ValueError: the cache holds other tokens than its convolutions have seen, or has no such layer.
    """
    check_cache(cache)
    while len(cache.layers) <= index and cache.layer_class_to_replicate is not None:
        cache.layers.append(cache.layer_class_to_replicate())
    if len(cache.layers) <= index:
        raise ValueError(f"past_key_values must have a layer {index}; got {len(cache.layers)} layers")
    layer = cache.layers[index]
    if not isinstance(layer, CacheLayerMixin):
        raise TypeError(
            "past_key_values must have layers with keys and values, which short convolutions can join; got "
            f"{type(layer).__name__}"
        )
    seen: Any = layer.get_seq_length() if layer.is_initialized or isinstance(layer, TokenCounter) else 0
    if isinstance(layer, ConvolvedLayer):
        if isinstance(seen, int) and not torch.compiler.is_compiling():
            layer.check(seen)
        return layer
    if int(seen) > 0:
        raise ValueError(
            f"past_key_values holds {int(seen)} tokens that the short convolutions have not seen: begin with an empty "
            "cache"
        )
    kind = type(layer)
    if kind not in _CONVOLVED:
        _CONVOLVED[kind] = _convolved(kind)
    convolved: Any = object.__new__(_CONVOLVED[kind])
    record_past = any(getattr(other, "record_past", False) for other in cache.layers)
    convolved.__dict__ = layer.__dict__
    StreamStates.__init__(convolved)
    convolved.record_past = record_past
    cache.layers[index] = convolved
    return convolved


def check_cache(cache: Any) -> None:
    """Raise TypeError unless this is a cache of a decoder."""
    if not isinstance(cache, Cache) or isinstance(cache, EncoderDecoderCache):
        raise TypeError(
            "past_key_values must be a transformers Cache of a decoder, say DynamicCache(config=model.config); got "
            f"{type(cache).__name__}"
        )


def decoder_cache(attention: Sequence[bool]) -> DynamicCache:
    """An empty cache for a decoder: for every layer keys and values where it has attention, and states."""
    cache = DynamicCache()
    attach_decoder_states(cache, attention)
    return cache


def attach_decoder_states(cache: Any, attention: Sequence[bool]) -> None:
    """Let a cache made for attention alone serve a decoder in which not every layer has it.

    Raises:
        TypeError: as :func:`attach_states`.
        ValueError: as :func:`attach_states`, or the cache is static and not every layer has attention.
    """
    check_cache(cache)
    if not all(attention) and any(isinstance(layer, StaticLayer) for layer in cache.layers):
        raise ValueError(
            "past_key_values must not be static in a model with recurrences, whose states are of fixed size already: "
            "use DynamicCache(), or leave cache_implementation out"
        )
    for index, has in enumerate(attention):
        states = attach_states(cache, index)
        if not has and not isinstance(states, TokenCounter):
            cache.layers[index] = ConvStateLayer()
