"""Short convolutions inside other people's modules.

A backbone (decoder or encoder), its layers and their linear layers keep their parameters, names and place; their
classes change to subclasses of the same name. What a call knows about its sequences goes from the backbone to its
layers in a slot, and into a layer as a keyword argument, which activation checkpointing keeps for its second pass.
"""

import functools
import inspect
import threading
from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..models.huggingface import NoPagedCache, Sequences, attach_states, find_cache, find_sequences, own_cache
from ..nn import Stream, StreamStates
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


class GraftedModel(NoPagedCache, Grafted):
    """A model with short convolutions, which is saved with them; it prepares caches for what generation does."""

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        """As the model, in the names of its modules: those of other formats are not for convolutions."""
        parent: Any = super()
        return parent.save_pretrained(save_directory, *args, **{"save_original_format": False, **kwargs})

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        # Before assisted decoding tells the cache to record what may be taken back, which only such states do.
        parent: Any = super()
        parent._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        cache, model = find_cache(model_kwargs), cast(PreTrainedModel, self)
        if cache is None:
            return
        states = own_cache(cache)
        number = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", len(states.layers))
        for module in model.modules():
            if isinstance(module, GraftedLayer) and module.graft_streams and module.graft_index < number:
                attach_states(states, module.graft_index)
        if generation_config.is_assistant:
            cache.activate_past_recording()


class GraftedBackbone(Grafted):
    """The decoder or encoder of such a model, which finds out about padding and packing for its layers."""

    graft_slot: "Slot"

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the original; its layers are also told about padding and packed sequences."""
        parent: Any = super()
        given = self._by_name(args, kwargs)
        inputs = given.get("input_ids") if given.get("inputs_embeds") is None else given["inputs_embeds"]
        if inputs is None:
            return parent.forward(*args, **kwargs)  # which says what is missing
        cache = find_cache(given)
        sequences = find_sequences(
            inputs.shape[:2],
            given.get("attention_mask"),
            given.get("position_ids"),
            None if cache is None else own_cache(cache),
            given.get("cu_seq_lens_q"),
        )
        if "logits_to_keep" in kwargs:  # layers behind which nothing is cached would get the last tokens alone
            kwargs = {**kwargs, "logits_to_keep": 0}
        before, self.graft_slot.sequences = self.graft_slot.sequences, sequences
        try:
            return parent.forward(*args, **kwargs)
        finally:
            self.graft_slot.sequences = before


class GraftedBackboneModel(GraftedModel, GraftedBackbone):
    """A model that is its own backbone."""


class GraftedParent(Grafted):
    """A module with linear layers whose output is convolved, also when something takes their place.

    Adapters of PEFT put a module around a linear layer and quantizers put another in its place, by `setattr` of its
    parent: the convolution then follows what is called by this name.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        old = vars(self).get("_modules", {}).get(name)
        if is_convolved(old) and isinstance(value, nn.Module) and value is not old:
            site, slot = old.graft_site, old.graft_slot
            plain(old)
            graft_linear(value, site, slot)
        super().__setattr__(name, value)


class GraftedLayer(GraftedParent):
    """A layer with short convolutions."""

    graft_index: int
    graft_slot: "Slot"
    graft_sites: tuple[str, ...]
    graft_streams: bool
    short_convs: nn.ModuleDict

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the layer, with the sequences of the backbone's call."""
        parent: Any = super()
        return parent.__call__(*args, **{"short_conv_sequences": self.graft_slot.sequences, **kwargs})

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the layer, which also hands its sequences to its linear layers."""
        sequences: Sequences | None = kwargs.pop("short_conv_sequences", None)
        if sequences is None:
            raise RuntimeError(
                f"{type(self).__name__} with short convolutions must be called by the decoder or encoder that it is in"
            )
        cache = find_cache(self._by_name(args, kwargs)) if self.graft_streams else None
        # Packed sequences are not continued.
        packed = sequences.cu_seqlens is not None
        states = None if cache is None or packed else attach_states(own_cache(cache), self.graft_index)
        stream = Stream(sequences.mask, sequences.cu_seqlens, states)
        before, call = self.graft_slot.call, LayerCall(self.short_convs, stream, sequences)
        self.graft_slot.call = call
        parent: Any = super()
        try:
            result = parent.forward(*args, **kwargs)
        finally:
            self.graft_slot.call = before
        if missed := set(self.graft_sites) - call.convolved:
            raise RuntimeError(
                f"{type(self).__name__} has not called {', '.join(sorted(missed))}, whose outputs have short "
                "convolutions: something stands in the place of these linear layers"
            )
        return result


class GraftedLinear(Grafted):
    """A linear layer whose output is convolved."""

    graft_site: Site
    graft_slot: "Slot"

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[B, T, C] to [B, T, D]; tokens may also be flattened to [B * T, C]."""
        parent: Any = super()
        return _convolve(self, (x,), parent.forward(x, *args, **kwargs))


class Slot(threading.local):
    """Where a backbone leaves its sequences for its layers, and a layer its call for its linear layers, by thread."""

    def __init__(self) -> None:
        # In every thread, and not as defaults of the class: a compiled call guards what the instance has.
        self.sequences: Sequences | None = None
        self.call: LayerCall | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Slot, ()


class LayerCall:
    """One call of a layer: its sequences, and filters already made, which projections of one input share."""

    def __init__(self, groups: Any, stream: Stream, sequences: Sequences):
        self.groups, self.stream, self.sequences = groups, stream, sequences
        self.made: dict[str, tuple[Tensor, dict[str, Tensor]]] = {}
        self.convolved: set[str] = set()

    def convolve(self, site: Site, x: Tensor, y: Tensor) -> Tensor:
        """Convolve y, what the linear layer at `site` made of x."""
        if site.path in self.convolved:
            raise RuntimeError(f"{site.path} with a short convolution must be called once in a call of its layer")
        self.convolved.add(site.path)
        (B, T), shape, stream = self.sequences.shape, y.shape, self.stream
        if site.anew and x.shape[-2] > T:
            T, stream = x.shape[-2], self._all_tokens(x.shape[-2])
        elif site.anew:
            stream = Stream(self.sequences.mask, self.sequences.cu_seqlens)
        # Where a model has tokens before rows, there are as many, and a view would mix them up.
        swapped = x.dim() > 2 and (x.shape[0], x.shape[-2]) != (B, T)
        if swapped or y.numel() != B * T * shape[-1] or x.numel() != B * T * x.shape[-1]:
            raise RuntimeError(
                f"{site.path} with a short convolution must see a sequence, [{B}, {T}] tokens; got {list(x.shape)}"
            )
        conditions = self._conditions(site.group, x, x.view(B, T, -1))
        parts = [y.view(B, T, -1)] if site.fusion is None else site.fusion.split(y.view(B, T, -1))
        for index, conv in enumerate(site.convs):
            if conv is not None:
                state, condition = f"{site.group}.{conv.name}", conditions.get(conv.name)
                module = self.groups[site.group].convs[conv.name]
                parts[index] = stream.convolve(module, state, parts[index], condition)
        y = parts[0] if site.fusion is None else site.fusion.merge(parts)
        return y.view(shape)

    def _all_tokens(self, number: int) -> Stream:
        """Those of the cache and of this call; what follows them in a static cache matters to none of them."""
        mask = self.sequences.keys
        if mask is not None:
            mask = nn.functional.pad(mask[:, :number], (0, max(0, number - mask.shape[1])))
        return Stream(mask, states=StreamStates())  # which lets tokens with padding between them follow one another

    def _conditions(self, name: str, x: Tensor, source: Tensor) -> dict[str, Tensor]:
        made_from, conditions = self.made.get(name, (None, {}))
        if made_from is not x:
            conditions = self.groups[name].conditions(source)
            self.made[name] = (x, conditions)
        return conditions


def graft_linear(linear: Any, site: Site, slot: Slot) -> None:
    """Let a convolution follow a module, unless one does already."""
    if is_convolved(linear):
        return
    linear.graft_site, linear.graft_slot = site, slot
    try:
        change_class(linear, GraftedLinear)
    except TypeError:  # classes with slots, such as quanto's, do not change; calls with a hook take microseconds longer
        linear.register_forward_hook(_convolve)


def is_convolved(module: Any) -> bool:
    """Whether a convolution follows a linear layer, or what stands in its place."""
    return hasattr(module, "graft_site")


def _convolve(linear: Any, inputs: tuple[Any, ...], y: Tensor) -> Tensor:
    if linear.graft_slot.call is None:
        raise RuntimeError(f"{linear.graft_site.path} with a short convolution must be called by its decoder layer")
    return linear.graft_slot.call.convolve(linear.graft_site, inputs[0], y)


def plain(module: Any) -> None:
    """Give a module its class from before a graft; its convolutions are lost."""
    if isinstance(module, Grafted):
        module.__class__ = original_class(module)
    for key in [key for key, hook in module._forward_hooks.items() if hook is _convolve]:
        del module._forward_hooks[key]
    for name in [name for name in vars(module) if name.startswith("graft_")]:
        delattr(module, name)
    if hasattr(module, "short_convs"):
        del module.short_convs


def change_class(module: nn.Module | PreTrainedConfig, mixin: type) -> None:
    """Give a module or a configuration the class that mixes `mixin` into its own."""
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
    if issubclass(original, nn.Module):
        members["argument_names"] = tuple(inspect.signature(original.forward).parameters)[1:]
    # Hugging Face and FSDP look classes up by their names.
    members |= {"__module__": original.__module__, "__qualname__": original.__qualname__}
    return type(original.__name__, (mixin, original), members)


def _new(mixin: type, original: type) -> Any:
    return object.__new__(_mixed(mixin, original))
