"""Put short convolutions into a model, and take them out again."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..models.huggingface import note_version
from ..nn import DynamicShortConv, ShortConv, ShortConvGroup
from ..nn.shortconv import Init, Kind, check_placement
from .auto import GraftedConfig, architectures_of, mark_config
from .modules import (
    Grafted,
    GraftedBackbone,
    GraftedBackboneModel,
    GraftedLayer,
    GraftedModel,
    GraftedParent,
    Slot,
    change_class,
    graft_linear,
    is_convolved,
    original_class,
    plain,
)
from .sites import Site
from .stacks import Stack, attention_of, find_stacks


def graft(
    model: PreTrainedModel,
    placement: str = "qkv",
    kind: Kind = "lowrank",
    *,
    width: int = 4,
    rank: int = 16,
    head_dim: int = 16,
    static: bool = True,
    init: Init = "identity",
) -> PreTrainedModel:
    """Put short convolutions after linear layers of a language model, in place.

    Each convolution is y + conv(y) of the output y of a linear layer, with filters made from the input of that layer:
    for queries, keys and values before any norm and rotary embedding. Convolutions that share an input share one
    projection. In a decoder they are causal; in an encoder centred ("same" padding), since its tokens see what follows
    them. Attention from a decoder to an encoder gets none. In multi-head latent attention (DeepSeek-V2) those of keys
    and values are behind the compression, and are computed anew for all tokens with every call, as these projections.

    The parameters are in `short_convs` of every layer; all others keep their names, so that a checkpoint of the model
    without convolutions still loads. The model trains, compiles and generates as before, with dynamic, sliding-window,
    hybrid and static caches; not with paged ones (continuous batching). A layer whose convolved linear layers are not
    called, since something has taken their place, raises RuntimeError. `save_pretrained` saves the convolutions too,
    and :func:`from_pretrained` loads them. To train them alone::

        for name, parameter in model.named_parameters():
            parameter.requires_grad = "short_convs" in name

    The paper trains them without weight decay. Packed sequences need `use_cache=False`, as in transformers itself. An
    adapter of PEFT on a projection, and a quantized layer in its place, are convolved as the projection was.

    Args:
        model: of transformers: causal language model, encoder, encoder-decoder, language model behind another
            modality, or a backbone alone; docs/hosts.md says which types. Layers that have no such projections, say
            of recurrences, get none of their convolutions, and so do encoders of images and sounds.
        placement: "qkv" or any of these letters, or "all_linear": after every linear layer of the layers, but for
            routers and routed experts, which see no sequences, and parts of fused layers that are gates.
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
        ValueError: a layout that is not known or cannot be served, a model that takes no tokens, has short convolutions
            or adapters of PEFT, or is sharded or dispatched to devices already, a placement that names nothing, or
            sizes that do not fit. The model stays as it was.
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
    # They stand in the place of linear layers, whose convolutions would be left out, or have some inside.
    if any(type(module).__module__.startswith("peft.") for module in model.modules()):
        raise ValueError(
            "model has adapters of PEFT inside: graft before they are added, or merge them with merge_and_unload()"
        )
    options = _options(placement, kind=kind, width=width, rank=rank, head_dim=head_dim, static=static, init=init)
    note_version()
    stacks = find_stacks(model, placement)
    _check_modules(model, stacks)
    # All are made before the first takes its place: one that does not fit leaves the model as it was.
    convs = [
        [
            _groups(layer, sites, model.dtype, {**options, "padding": stack.padding})
            for layer, sites in zip(stack.layers, stack.sites, strict=True)
        ]
        for stack in stacks
    ]
    for stack, groups in zip(stacks, convs, strict=True):
        _graft_stack(model, stack, groups)
    change_class(model, GraftedBackboneModel if any(stack.backbone is model for stack in stacks) else GraftedModel)
    model.config.dynaconv = {"placement": placement, **options}
    mark_config(model.config, graft)
    return model


def ungraft(model: PreTrainedModel) -> PreTrainedModel:
    """Take the short convolutions of :func:`graft` out again, in place; their parameters are lost.

    Returns:
        The model.

    Raises:
        ValueError: the model has none, or was changed since, by FSDP for instance. The model stays as it was.
    """
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    grafted = [module for module in modules if isinstance(module, Grafted)]
    if not grafted:
        raise ValueError(f"model must have short convolutions from dynaconv.graft; got a plain {type(model).__name__}")
    for module in grafted:
        original_class(module)  # raises before the first is changed
    for module in [*grafted, *filter(is_convolved, modules)]:
        plain(module)
    vars(model.config).pop("dynaconv", None)
    if isinstance(model.config, GraftedConfig):
        model.config.__class__ = original_class(model.config)
        model.config.architectures = architectures_of(model.config) or None
    return model


def _options(placement: Any, **options: Any) -> dict[str, Any]:
    """Check the options, and leave out those that say nothing."""
    check_placement(placement, ("all_linear",))
    for name, kind in (("width", int), ("rank", int), ("head_dim", int), ("static", bool)):
        if type(options[name]) is not kind:
            raise TypeError(f"{name} must be {kind.__name__}; got {options[name]!r}")
    if options["rank"] < 1:
        raise ValueError(f"rank must be at least 1; got {options['rank']}")
    if options["kind"] == "static" and not options.pop("static"):
        raise ValueError('kind="static" is the static filters alone; got static=False')
    return options


def _check_modules(model: nn.Module, stacks: list[Stack]) -> None:
    """Raise ValueError where the graft would not take effect, or do so in part."""
    touched = [model]
    for stack in stacks:
        touched.append(stack.backbone)
        for layer, sites in zip(stack.layers, stack.sites, strict=True):
            touched += [layer, *(layer.get_submodule(site.path) for site in sites)] if sites else []
    if patched := [type(module).__name__ for module in touched if "forward" in vars(module)]:
        raise ValueError(
            f"forward of {', '.join(sorted(set(patched)))} was replaced, by device_map, offloading or a patch: graft "
            "before that, or load a grafted model with dynaconv.from_pretrained(path, device_map=...)"
        )
    if any(type(parameter.data).__name__ == "DTensor" for parameter in model.parameters()):
        raise ValueError("model is sharded already: graft before fully_shard or tensor parallelism")


def _groups(layer: nn.Module, sites: list[Site], dtype: torch.dtype, options: dict[str, Any]) -> nn.ModuleDict:
    """The convolutions of a layer, where its linear layers are."""
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


def _graft_stack(model: PreTrainedModel, stack: Stack, convs: list[nn.ModuleDict]) -> None:
    slot = Slot()  # one for all layers: some models have linear layers that several of these share
    stack.backbone.graft_slot = slot
    for index, (module, sites) in enumerate(zip(stack.layers, stack.sites, strict=True)):
        if not sites:
            continue
        layer: Any = module
        for site in sites:
            graft_linear(layer.get_submodule(site.path), site, slot)
            parent = layer.get_submodule(site.path.rpartition(".")[0])
            if parent is not layer and not isinstance(parent, Grafted):
                change_class(parent, GraftedParent)
        # Some caches have several layers for one of the network.
        own_index = getattr(attention_of(layer, sites), "layer_idx", None)
        layer.graft_index = index if own_index is None else own_index
        layer.graft_slot, layer.graft_streams = slot, stack.padding == "causal"
        layer.graft_sites = tuple(site.path for site in sites)
        layer.short_convs = convs[index].train(layer.training)
        change_class(layer, GraftedLayer)
    if stack.backbone is not model:
        change_class(stack.backbone, GraftedBackbone)
