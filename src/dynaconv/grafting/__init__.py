"""Short convolutions put into any Hugging Face causal language model, in place.

Source: *Dynamic Short Convolutions Improve Transformers* (Sieberling et al., 2026).
"""

import inspect
import os
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from ..nn import DynamicShortConv, ShortConv, ShortConvGroup
from ..nn.shortconv import Init, Kind
from .modules import (
    Grafted,
    GraftedDecoder,
    GraftedLayer,
    GraftedLinear,
    GraftedModel,
    Slot,
    change_class,
    original_class,
)
from .sites import Site, decoder_layers, describe, find_sites

__all__ = ["from_pretrained", "graft", "ungraft"]

_HUB_KEYWORDS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


def graft(
    model: PreTrainedModel, placement: str = "qkv", kind: Kind = "lowrank", *, width: int = 4, rank: int = 16,
    head_dim: int = 16, static: bool = True, init: Init = "identity",
) -> PreTrainedModel:  # fmt: skip
    """Put short convolutions after linear layers of a causal language model, in place.

    Each convolution is y + conv(y) of the output y of a linear layer, with filters made from the input of that layer:
    for queries, keys and values before any norm and rotary embedding. Convolutions that share an input share one
    projection. The parameters are in `short_convs` of every decoder layer; all others keep their names, so that a
    checkpoint of the model without convolutions still loads. The model trains, compiles and generates as before, with
    dynamic, sliding-window and static caches; not with paged ones (continuous batching). `save_pretrained` saves the
    convolutions too, and :func:`from_pretrained` loads them. To train them alone::

        for name, parameter in model.named_parameters():
            parameter.requires_grad = "short_convs" in name

    The paper trains them without weight decay. Packed sequences need `use_cache=False`, as in transformers itself. LoRA
    on a projection adds its update behind the convolution, so that merging it into the weights changes the model.

    Args:
        model: with projections q_proj, k_proj and v_proj (Llama, Qwen, Gemma, Mistral, OLMo and their variants with
            experts, among others), or with the fused ones of GPT-2, GPT-NeoX and Phi-3. Layers that have no such
            projection, say of linear attention, get none of its convolutions.
        placement: "qkv" or any of these letters, or "all_linear": after every linear layer of the decoder layers, but
            for routers and routed experts, which see no sequences.
        kind: "lowrank", "headwise" or "static".
        width: W, taps.
        rank: R, of kind "lowrank".
        head_dim: channels that share a filter, of kind "headwise"; divides the size of every output.
        static: beside dynamic filters, learn a static one for each channel.
        init: "identity", the model computes what it did, to the bit, until it is trained; or "paper", to train from
            scratch, static filters from U(-1/sqrt(W), 1/sqrt(W)).

    Returns:
        The model.

    Raises:
        TypeError: not a Hugging Face model, or an option of another type.
        ValueError: not a causal language model, a layout that is not known, a model that has short convolutions or is
            sharded or dispatched to devices already, a placement that names nothing, or sizes that do not fit. The
            model stays as it was.
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(
            "model must be a transformers PreTrainedModel, before adapters of PEFT are put around it; got "
            f"{type(model).__name__}"
        )
    if any(isinstance(module, Grafted) for module in model.modules()):
        raise ValueError("model has short convolutions already: call dynaconv.ungraft first")
    if any(isinstance(module, (ShortConv, DynamicShortConv)) for module in model.modules()):
        raise ValueError(f"model has short convolutions of its own, {type(model).__name__}: choose them in its config")
    options = _options(placement, kind=kind, width=width, rank=rank, head_dim=head_dim, static=static, init=init)
    decoder, layers = decoder_layers(model)
    plans = [find_sites(model.config.get_text_config(decoder=True), layer, placement) for layer in layers]
    if not any(plans):
        raise ValueError(f"model has a layout that is not known, {type(model).__name__}: {describe(layers)}")
    grafted = [(index, layer, sites) for index, (layer, sites) in enumerate(zip(layers, plans, strict=True)) if sites]
    _check_modules(model, decoder, grafted)
    groups = [_groups(layer, sites, model.dtype, options) for _, layer, sites in grafted]
    for (index, layer, sites), convs in zip(grafted, groups, strict=True):
        _graft_layer(layer, index, sites, convs)
    change_class(decoder, GraftedDecoder)
    change_class(model, GraftedModel)
    model.config.dynaconv = {"placement": placement, **options}
    return model


def ungraft(model: PreTrainedModel) -> PreTrainedModel:
    """Take the short convolutions of :func:`graft` out again, in place; their parameters are lost.

    Returns:
        The model.

    Raises:
        ValueError: the model has none, or was changed since, by FSDP for instance. The model stays as it was.
    """
    grafted = [module for module in model.modules() if isinstance(module, Grafted)]
    if not grafted:
        raise ValueError(f"model must have short convolutions from dynaconv.graft; got a plain {type(model).__name__}")
    for module, original in [(module, original_class(module)) for module in grafted]:
        module.__class__ = original
        for name in [name for name in vars(module) if name.startswith("graft_")]:
            delattr(module, name)
        if hasattr(module, "short_convs"):
            del module.short_convs
    vars(model.config).pop("dynaconv", None)
    return model


def from_pretrained(path: str | os.PathLike[str], **keywords: Any) -> Any:
    """Load a model that was saved with short convolutions by `save_pretrained`.

    Args:
        path: folder, or name on the Hugging Face hub.
        **keywords: as of `transformers.AutoModelForCausalLM.from_pretrained`: `dtype`, `device_map`, `revision`, ...

    Returns:
        The model; with `output_loading_info` the pair of it and what transformers tells about the loading.

    Raises:
        ValueError: the checkpoint has no short convolutions, other ones than :func:`graft` makes, or lacks some of
            their parameters.
    """
    hub = {name: keywords.pop(name) for name in _HUB_KEYWORDS if name in keywords}
    own = {name: keywords.pop(name) for name in ("dtype", "output_loading_info") if name in keywords}
    config: Any = keywords.pop("config", None)
    if config is None:
        load: Any = AutoConfig.from_pretrained
        config, keywords = load(path, return_unused_kwargs=True, **hub, **keywords)
    options = getattr(config, "dynaconv", None)
    if options is None:
        raise ValueError(
            f"{path} was not saved with convolutions from dynaconv.graft: load it with "
            "transformers.AutoModelForCausalLM, after import dynaconv.models if it is one of these"
        )
    names = set(inspect.signature(graft).parameters) - {"model"}
    if not isinstance(options, dict) or not options.keys() <= names:
        raise ValueError(f"dynaconv in the config.json of {path} must have {', '.join(sorted(names))}; got {options!r}")
    original: Any = getattr(transformers, (config.architectures or ["?"])[0], None)
    if not isinstance(original, type) or not issubclass(original, PreTrainedModel):
        raise ValueError(f"{path} must name a model of transformers in architectures; got {config.architectures}")

    def build(self: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
        original.__init__(self, *args, **kwargs)
        self.__class__ = original
        graft(self, **options)

    identity = {"__module__": original.__module__, "__qualname__": original.__qualname__}
    builder: Any = type(original.__name__, (original,), {"__init__": build, **identity})
    wants_info = own.pop("output_loading_info", False)
    model, info = builder.from_pretrained(path, config=config, output_loading_info=True, **hub, **own, **keywords)
    missing = sorted(key for key in info["missing_keys"] if ".short_convs." in key)
    if missing:
        raise ValueError(
            f"{path} lacks {len(missing)} parameters of short convolutions that its config.json tells of: "
            f"{', '.join(missing[:3])}, ..."
        )
    return (model, info) if wants_info else model


def _options(placement: Any, **options: Any) -> dict[str, Any]:
    """Check the options, and leave out those that say nothing."""
    if placement != "all_linear" and (
        not isinstance(placement, str) or not placement or set(placement) - set("qkv")
        or len(set(placement)) < len(placement)
    ):  # fmt: skip
        raise ValueError(f'placement must be letters of "qkv", each once, or "all_linear"; got {placement!r}')
    for name, kind in (("width", int), ("rank", int), ("head_dim", int), ("static", bool)):
        if type(options[name]) is not kind:
            raise TypeError(f"{name} must be {kind.__name__}; got {options[name]!r}")
    if options["rank"] < 1:
        raise ValueError(f"rank must be at least 1; got {options['rank']}")
    if options["kind"] == "static":
        del options["static"]
    return options


def _check_modules(model: nn.Module, decoder: nn.Module, grafted: list[tuple[int, nn.Module, list[Site]]]) -> None:
    """Raise ValueError where the graft would not take effect, or do so in part."""
    for name, module in (("decoder", decoder), *((f"layer {index}", layer) for index, layer, _ in grafted)):
        if not any(
            p.kind is inspect.Parameter.VAR_KEYWORD for p in inspect.signature(module.forward).parameters.values()
        ):
            raise ValueError(
                f"model has a layout that is not known: forward of the {name}, {type(module).__name__}, takes no "
                "**kwargs, by which its layers would learn of padding and packed sequences"
            )
    touched = [model, decoder, *(layer for _, layer, _ in grafted)]
    touched += [layer.get_submodule(site.path) for _, layer, sites in grafted for site in sites]
    if patched := [type(module).__name__ for module in touched if "forward" in vars(module)]:
        raise ValueError(
            f"forward of {', '.join(sorted(set(patched)))} was replaced, by device_map, offloading or a patch: graft "
            "before that, or load a grafted model with dynaconv.from_pretrained(path, device_map=...)"
        )
    if any(type(parameter.data).__name__ == "DTensor" for parameter in model.parameters()):
        raise ValueError("model is sharded already: graft before fully_shard or tensor parallelism")


def _groups(layer: nn.Module, sites: list[Site], dtype: torch.dtype, options: dict[str, Any]) -> nn.ModuleDict:
    """The convolutions of a decoder layer, where its linear layers are."""
    groups: dict[str, tuple[nn.Module, int, dict[str, int]]] = {}
    for site in sites:
        _, _, dims = groups.setdefault(site.group, (layer.get_submodule(site.path), site.in_dim, {}))
        dims.update(conv for conv in site.convs if conv is not None)
    name = ""
    try:
        convs = nn.ModuleDict()
        for name, (linear, in_dim, dims) in groups.items():
            device = next(linear.parameters()).device
            convs[name] = ShortConvGroup(dims, in_dim, device=device, dtype=dtype, **options)
    except ValueError as error:
        raise ValueError(f"{name} of {type(layer).__name__}: {error}") from error
    return convs


def _graft_layer(layer: Any, index: int, sites: list[Site], convs: nn.ModuleDict) -> None:
    slot = Slot()
    for site in sites:
        linear = layer.get_submodule(site.path)
        linear.graft_site, linear.graft_slot = site, slot
        change_class(linear, GraftedLinear)
    layer.graft_index, layer.graft_slot, layer.short_convs = index, slot, convs.train(layer.training)
    change_class(layer, GraftedLayer)
