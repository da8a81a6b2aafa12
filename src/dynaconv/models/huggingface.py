"""What the project knows of transformers: names of arguments and outputs, caches, masks, what it asks of a model.

Adapters look at what is there, not at version numbers. transformers 5.24 calls `cache` what 5.23 called
`past_key_values`: :data:`CACHE` is the name in the version at hand, and our own models take both.

Dims: B batch, T tokens, N packed sequences.
"""

import dataclasses
import functools
import logging
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import masking_utils, modeling_outputs
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
from transformers.utils import TransformersKwargs

from ..nn import StreamStates

logger = logging.getLogger("dynaconv")

TESTED = "5.24"  # the newest minor version of transformers that the tests have passed with
CACHE_NAMES = ("cache", "past_key_values")  # also in the signatures of our models, the first one first
CACHE = next(
    name
    for name in CACHE_NAMES
    if name in {field.name for field in dataclasses.fields(modeling_outputs.BaseModelOutputWithPast)}
)
# What a caller may pass through our models to attention, to the loss and to what collects outputs.
_PASSED_ON = {*TransformersKwargs.__annotations__, "return_dict", "shift_labels"}


@functools.cache
def note_version() -> None:
    """Log one line where the version of transformers is newer than any that was tested."""
    installed = version("transformers")
    if tuple(map(int, installed.split(".")[:2])) > tuple(map(int, TESTED.split("."))):
        logger.info("transformers %s is newer than %s, the last that dynaconv was tested with", installed, TESTED)


def check_arguments(model: object, arguments: Iterable[str]) -> None:
    """Raise TypeError where a model was given an argument that neither it nor transformers knows."""
    if unknown := sorted(set(arguments) - _PASSED_ON):
        raise TypeError(f"{type(model).__name__} has no argument {', '.join(unknown)}")


def one_cache(cache: Any, past_key_values: Any) -> Any:
    """The cache that was given under one of two names; raises TypeError where both were."""
    if cache is not None and past_key_values is not None:
        raise TypeError("give either cache or past_key_values, its older name; got both")
    return past_key_values if cache is None else cache


def find_cache(arguments: Mapping[str, Any]) -> Any:
    """What a model or a layer was given as its cache, by whatever name; None: nothing."""
    named = (arguments.get(name) for name in CACHE_NAMES)
    found = next((value for value in named if value is not None), None)
    return next((value for value in arguments.values() if isinstance(value, Cache)), None) if found is None else found


def create_causal_mask(config: Any, x: Tensor, mask: Any, cache: Cache | None, position_ids: Tensor | None) -> Any:
    """The mask of causal attention in the format of its implementation; arguments as of transformers' function."""
    return masking_utils.create_causal_mask(
        config=config, inputs_embeds=x, attention_mask=mask, position_ids=position_ids, **{CACHE: cache}
    )


def output(kind: Any, cache: Any, **values: Any) -> Any:
    """A transformers output of a kind that has a cache, with it under both of its names."""
    return kind(**values, **{CACHE: cache})


def _both_names(kind: Any) -> Any:
    """An output class whose cache can be read as `cache` too where transformers has only the older name."""
    if CACHE == "cache":
        return kind
    members = {"__module__": __name__, "cache": property(lambda self: self.past_key_values)}
    return type(kind.__name__, (kind,), members)


MoeCausalLMOutputWithPast = _both_names(modeling_outputs.MoeCausalLMOutputWithPast)
MoeModelOutputWithPast = _both_names(modeling_outputs.MoeModelOutputWithPast)
Seq2SeqLMOutput = _both_names(modeling_outputs.Seq2SeqLMOutput)
Seq2SeqModelOutput = _both_names(modeling_outputs.Seq2SeqModelOutput)


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


class Sequences(NamedTuple):
    """What layers that are no attention have to know about the tokens [B, T] of a call.

    Attributes:
        shape: B, T.
        mask: [B, T], zero at padding; None: no padding.
        cu_seqlens: [N + 1], the ends of packed sequences in the rows laid end to end; None: every row is one sequence.
        keys: [B, K], zero at padding, from the first token that the cache holds on; None: no padding.
    """

    shape: torch.Size
    mask: Tensor | None = None
    cu_seqlens: Tensor | None = None
    keys: Tensor | None = None


def find_sequences(
    shape: torch.Size, attention_mask: Any, position_ids: Tensor | None, cache: Cache | None, cu_seqlens: Tensor | None
) -> Sequences:
    """Padding and packed sequences.

    Sequences are packed where `cu_seqlens` says so, where `position_ids` start again and there are neither a mask nor a
    cache, and where a mask [B, 1, T, T] keeps a token from the one before it.

    Args:
        shape: B, T of this call.
        attention_mask: [B, past + T], nonzero at tokens; [B, 1, T, keys], True, or about 0, where a token may look;
            such masks by kind of layer; or None.
        position_ids: [B, T] or None.
        cache: what the model was given.
        cu_seqlens: [N + 1] or None.

    Raises:
        TypeError: the mask is of another kind.
        ValueError: packed sequences together with padding or a cache that holds tokens, or across rows; a mask that is
            too short.
    """
    past = past_length(cache)
    if cu_seqlens is not None:
        _refuse_past(past)
        _check_packing(shape, attention_mask, cu_seqlens)
        return Sequences(shape, None, cu_seqlens)
    chunked = False
    if isinstance(attention_mask, dict):
        full = attention_mask.get("full_attention")
        chunked = full is None and "chunked_attention" in attention_mask  # where a chunk begins, no sequence does
        attention_mask = next(iter(attention_mask.values())) if full is None else full
    if attention_mask is None:
        if position_ids is None or cache is not None:
            return Sequences(shape)
        if position_ids.dim() == 3:  # of several axes; the first of four is that of text
            if position_ids.shape[0] != 4:
                return Sequences(shape)
            position_ids = position_ids[0]
        sequence = masking_utils.find_packed_sequence_indices(position_ids.expand(shape))
        return Sequences(shape, None, None if sequence is None else _ends(sequence))
    if not isinstance(attention_mask, Tensor):
        raise TypeError(
            f"attention_mask must be a tensor [B, T] for convolutions to see; got {type(attention_mask).__name__}"
        )
    sequence = None
    if attention_mask.dim() == 2:
        mask, keys = _columns(attention_mask, shape[1], past), attention_mask
    else:
        mask, keys, sequence = _read_pairs(attention_mask, shape[1], cache, past)
        if chunked:
            sequence = None
        elif sequence is not None:
            _refuse_past(past)
    if not torch.compiler.is_compiling() and bool(mask.all()):
        mask = None
    return Sequences(shape, mask, None if sequence is None else _ends(sequence), keys)


def _columns(mask: Tensor, tokens: int, past: Any) -> Tensor:
    """The columns of these tokens in [B, past + T], which may go on behind them unless `past` is None, not known."""
    if past is None:
        return mask[:, -tokens:]
    if isinstance(past, Tensor):
        return mask.index_select(1, torch.arange(tokens, device=mask.device) + past)
    if mask.shape[1] < past + tokens:
        raise ValueError(
            f"attention_mask must be [B, past + T] with past = {past}, T = {tokens}; got {list(mask.shape)}"
        )
    return mask[:, past : past + tokens]


def _read_pairs(mask: Tensor, tokens: int, cache: Cache | None, past: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """What a mask [B, 1, T, keys] says of tokens and keys.

    Returns:
        Whether a token may look at itself, which padding may not, [B, T]; whether any token may look at a key,
        [B, keys]; which sequence a token is of, [B, T], or None.
    """
    first = 0
    if cache is not None:
        sizes = [layer.get_mask_sizes(tokens) for layer in cache.layers if isinstance(layer, CacheLayerMixin)]
        first = next((start for keys, start in sizes if keys == mask.shape[3]), 0)
    allowed = mask[:, 0] if mask.dtype == torch.bool else mask[:, 0] > torch.finfo(mask.dtype).min / 2
    own = (torch.arange(tokens, device=mask.device) + ((past or 0) - first)).expand(mask.shape[0], -1)
    keys = allowed.any(1)
    real = allowed.gather(2, own[..., None])[..., 0]
    if tokens < 2 or (cache is not None and torch.compiler.is_compiling()):
        return real, keys, None
    before = allowed[:, 1:].gather(2, own[:, :-1, None])[..., 0]
    begins = real[:, 1:] & real[:, :-1] & ~before
    if not torch.compiler.is_compiling() and not bool(begins.any()):
        return real, keys, None
    return real, keys, torch.nn.functional.pad(begins, (1, 0)).cumsum(1)


def _check_packing(shape: torch.Size, mask: Any, cu_seqlens: Tensor) -> None:
    if torch.compiler.is_compiling():
        return
    if isinstance(mask, Tensor) and mask.dim() == 2 and not bool(mask.all()):
        raise ValueError("packed sequences have no padding: give either cu_seq_lens_q or an attention_mask with zeros")
    rows = torch.arange(shape[0] + 1, device=cu_seqlens.device) * shape[1]
    if shape[0] > 1 and not bool(torch.isin(rows, cu_seqlens).all()):
        raise ValueError(
            f"every row must begin a sequence: cu_seq_lens_q must have {rows.tolist()}; got {cu_seqlens.tolist()}"
        )


def _refuse_past(past: Any) -> None:
    if past is None or int(past) > 0:
        held = "some" if past is None else int(past)
        raise ValueError(f"packed sequences cannot continue those of a cache; the cache holds {held} tokens")


def _ends(sequence: Tensor) -> Tensor:
    """[B, T] indices of sequences, each row begins one, to their ends [N + 1] in the rows laid end to end."""
    first = torch.ones_like(sequence, dtype=torch.bool)
    first[:, 1:] = sequence[:, 1:] != sequence[:, :-1]
    starts = first.flatten().nonzero()[:, 0]
    return torch.cat([starts, starts.new_tensor([first.numel()])]).int()
