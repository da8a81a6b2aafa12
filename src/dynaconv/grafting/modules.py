"""Short convolutions inside other people's modules.

The decoder, its layers and the linear layers keep their parameters, names and place; their classes change to subclasses
of the same name. What a call knows about its sequences is handed from the decoder to its layers as a keyword argument,
which activation checkpointing keeps for the second forward pass; a layer hands it to its linear layers.
"""

import functools
import inspect
import threading
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..models.cache import attach_states, check_cache
from ..models.sequences import find_sequences
from ..nn import Stream
from .sites import Site


class Grafted:
    """Mixed into the class of a module that a graft changes; copies and pickles keep the change."""

    mixin: type
    original: type
    argument_names: tuple[str, ...]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _new, (self.mixin, self.original), self.__dict__

    def _by_name(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of `forward`."""
        return {**dict(zip(self.argument_names, args, strict=False)), **kwargs}


class GraftedModel(Grafted):
    """A causal language model with short convolutions; it prepares caches for what generation does with them."""

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        # Before assisted decoding tells the cache to record what may be taken back, which only such states do.
        parent: Any = super()
        parent._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        cache, model = model_kwargs.get("past_key_values"), cast(PreTrainedModel, self)
        if cache is not None:
            for module in model.get_decoder().modules():
                if isinstance(module, GraftedLayer) and module.graft_index < model.config.num_hidden_layers:
                    attach_states(cache, module.graft_index)
            if generation_config.is_assistant:
                cache.activate_past_recording()

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> None:
        """Not for short convolutions.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("short convolutions do not work with continuous batching: use generate()")


class GraftedDecoder(Grafted):
    """The decoder of such a model, which finds out about padding and packing for its layers."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the decoder; its layers are also told about padding and packed sequences."""
        given = self._by_name(args, kwargs)
        if given.get("cache") is not None:
            raise RuntimeError("short convolutions do not work with a paged cache: use generate()")
        parent: Any = super()
        inputs = given.get("inputs_embeds") if given.get("input_ids") is None else given["input_ids"]
        if inputs is None:
            return parent.forward(*args, **kwargs)  # which says what is missing
        cache = given.get("past_key_values")
        if cache is not None:
            check_cache(cache)
        sequences = find_sequences(
            inputs.shape[:2], given.get("attention_mask"), given.get("position_ids"), cache, given.get("cu_seq_lens_q")
        )
        return parent.forward(*args, short_conv_sequences=sequences, **kwargs)


class GraftedLayer(Grafted):
    """A decoder layer with short convolutions."""

    graft_index: int
    graft_slot: "Slot"
    short_convs: nn.ModuleDict

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the layer, which also hands its sequences to its linear layers."""
        sequences = kwargs.pop("short_conv_sequences", None)
        if sequences is None:
            raise RuntimeError(
                f"{type(self).__name__} with short convolutions must be called by its decoder, which must pass keyword "
                "arguments on to its layers"
            )
        given = self._by_name(args, kwargs)
        cache = next((given[name] for name in ("past_key_values", "layer_past") if name in given), None)
        # Packed sequences are not continued.
        states = None if cache is None or sequences.cu_seqlens is not None else attach_states(cache, self.graft_index)
        stream = Stream(sequences.mask, sequences.cu_seqlens, states)
        self.graft_slot.call = LayerCall(self.short_convs, stream, sequences.shape)
        parent: Any = super()
        try:
            return parent.forward(*args, **kwargs)
        finally:
            self.graft_slot.call = None


class GraftedLinear(Grafted):
    """A linear layer whose output is convolved."""

    graft_site: Site
    graft_slot: "Slot"

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, C] to [B, T, D]; tokens may also be flattened to [B * T, C]."""
        parent: Any = super()
        y = parent.forward(x)
        if self.graft_slot.call is None:
            raise RuntimeError(f"{self.graft_site.path} with a short convolution must be called by its decoder layer")
        return self.graft_slot.call.convolve(self.graft_site, x, y)


class Slot(threading.local):
    """Where a decoder layer leaves its call for its linear layers, in its thread."""

    call: "LayerCall | None" = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Slot, ()


class LayerCall:
    """One call of a decoder layer: its sequences, and filters already made, which projections of one input share."""

    def __init__(self, groups: Any, stream: Stream, shape: torch.Size):
        self.groups, self.stream, self.shape = groups, stream, shape
        self.made: dict[str, tuple[Tensor, dict[str, Tensor]]] = {}

    def convolve(self, site: Site, x: Tensor, y: Tensor) -> Tensor:
        """Convolve y, what the linear layer at `site` made of x."""
        (B, T), shape, group = self.shape, y.shape, self.groups[site.group]
        if shape[:-1] != (B, T) and shape[:-1] != (B * T,):
            raise RuntimeError(
                f"{site.path} with a short convolution must see a sequence, [{B}, {T}] tokens; got {list(x.shape)}"
            )
        conditions = self._conditions(site.group, group, x)
        parts = [y.view(B, T, -1)] if site.fusion is None else site.fusion.split(y.view(B, T, -1))
        for index, conv in enumerate(site.convs):
            if conv is not None:
                state, condition = f"{site.group}.{conv.name}", conditions.get(conv.name)
                parts[index] = self.stream.convolve(group.convs[conv.name], state, parts[index], condition)
        y = parts[0] if site.fusion is None else site.fusion.merge(parts)
        return y.view(shape)

    def _conditions(self, name: str, group: Any, x: Tensor) -> dict[str, Tensor]:
        source, conditions = self.made.get(name, (None, {}))
        if source is not x:
            conditions = group.conditions(x.view(*self.shape, -1))
            self.made[name] = (x, conditions)
        return conditions


def change_class(module: nn.Module, mixin: type) -> None:
    """Give a module the class that mixes `mixin` into its own."""
    module.__class__ = _mixed(mixin, type(module))


def original_class(module: Grafted) -> type:
    """The class before :func:`change_class`.

    Raises:
        ValueError: the class has changed once more since.
    """
    if type(module) is not _mixed(module.mixin, module.original):
        raise ValueError(
            f"{type(module).__name__} was changed after the graft, by FSDP for instance: ungraft before that"
        )
    return module.original


@functools.cache
def _mixed(mixin: type, original: Any) -> type:
    members = {"mixin": mixin, "original": original}
    members["argument_names"] = tuple(inspect.signature(original.forward).parameters)[1:]
    # Hugging Face and FSDP look classes up by their names.
    members |= {"__module__": original.__module__, "__qualname__": original.__qualname__}
    return type(original.__name__, (mixin, original), members)


def _new(mixin: type, original: type) -> Any:
    return object.__new__(_mixed(mixin, original))
