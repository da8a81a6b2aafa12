"""Which parts of other people's models are stacks of layers that see sequences."""

import inspect
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from .sites import Site, describe, find_sites

# What no look at the modules tells.
_REFUSED = {
    "zaya": "its projections of queries and keys are part of a convolution already",
    "hrm_text": "its layers are run through several times a token, and a convolution has one state",
    "inkling2_loop_text": "its layers are run through several times a token, and a convolution has one state",
    "reformer": "its layers are reversible and keep buckets, not a cache",
    "xlm": "its layers are no modules of their own",
    "xlnet": "its projections are parameters, not linear layers",
    "rwkv": "it keeps states of its own, not a cache",
    "xlstm": "it keeps states of its own, not a cache",
    "cpmant": "its prompts are no tokens of the sequence",
    "prophetnet": "its layers see several predictions of every token",
    "jetmoe": "its queries are made by experts, which see no sequence",
    "deepseek_v4": "its keys and values are compressed across tokens",
    "canine": "its layers see characters in some places and groups of them in others",
    "longformer": "its attention has tokens first and rows second",
    "led": "the attention of its encoder has tokens first and rows second",
    "pegasus_x": "its encoder attends in blocks, for which it pads the sequence",
    "t5gemma2": "its decoder projects its own tokens and those of the encoder with the same layers",
}
# Where "all_linear" cannot be, but letters can.
_REFUSED_EVERYWHERE = {"minimax": "the states of its linear attention are not in the layers of its cache"}
# Towers for what is no text.
_OTHER_MODALITIES = ("vision", "image", "audio", "speech")


@dataclass(frozen=True)
class Stack:
    """A decoder or an encoder, and where convolutions go in it.

    Attributes:
        backbone: the module that is called with tokens and their mask.
        layers: its layers.
        sites: of every layer.
        padding: "causal", or "same" where tokens see what follows them.
    """

    backbone: Any
    layers: nn.ModuleList
    sites: list[list[Site]]
    padding: str


def find_stacks(model: PreTrainedModel, placement: str) -> list[Stack]:
    """The stacks of a model that get convolutions.

    Raises:
        ValueError: a layout that is not known, a placement that names nothing in it, or a model that takes no tokens.
    """
    config: Any = model.config.get_text_config(decoder=True)
    refused = _REFUSED | (_REFUSED_EVERYWHERE if placement == "all_linear" else {})
    for kind in (model.config.model_type, config.model_type):
        if kind in refused:
            raise ValueError(f"model cannot have short convolutions, {type(model).__name__}: {refused[kind]}")
    if model.config.is_encoder_decoder:
        parts = [(model.get_encoder(), False), (model.get_decoder(), True)]
    else:
        decoder = model.get_decoder()
        # Some models call their output layer a decoder.
        parts = [(decoder if isinstance(decoder, PreTrainedModel) else model.base_model, None)]
    stacks = [_find_stack(model, part, causal, placement) for part, causal in parts]
    stacks = [stack for stack in stacks if any(stack.sites)]
    if not stacks:
        raise ValueError(f"model has a layout that is not known, {type(model).__name__}: {describe(model)}")
    of_tokens = [stack for stack in stacks if _takes_tokens(stack.backbone)]
    if not of_tokens:
        raise ValueError(
            f"model must take tokens, input_ids or inputs_embeds; {type(model).__name__} takes {model.main_input_name}"
        )
    return of_tokens


def _takes_tokens(backbone: Any) -> bool:
    """Not pixels or sounds, as the encoders of speech recognition do."""
    return not {"input_ids", "inputs_embeds"}.isdisjoint(inspect.signature(backbone.forward).parameters)


def _find_stack(model: PreTrainedModel, part: Any, causal: bool | None, placement: str) -> Stack:
    """The layers in a part of a model, and the innermost model that is called with their tokens."""
    if not isinstance(part, PreTrainedModel):
        raise ValueError(
            f"model cannot have short convolutions, {type(model).__name__}: {type(part).__name__} in it is no "
            "PreTrainedModel"
        )
    config: Any = part.config.get_text_config(decoder=True)
    lists = {
        path: module
        for path, module in part.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) and not any(word in path for word in _OTHER_MODALITIES)
    }
    attention = {path: layers for path, layers in lists.items() if any(find_sites(config, x, "qkv") for x in layers)}
    number = getattr(config, "num_hidden_layers", None)
    candidates = attention or {path: layers for path, layers in lists.items() if len(layers) == number}
    if not candidates:
        raise ValueError(f"model has a layout that is not known, {type(model).__name__}: {describe(model)}")
    path = next((path for path, layers in candidates.items() if len(layers) == number), next(iter(candidates)))
    names = path.split(".")
    owners = [part.get_submodule(".".join(names[:depth])) for depth in range(len(names))]
    backbone = [owner for owner in owners if isinstance(owner, PreTrainedModel)][-1]
    layers = candidates[path]
    sites = [find_sites(config, layer, placement) for layer in layers]
    if causal is None:
        causal = _is_causal(model, config, layers, sites)
    return Stack(backbone, layers, sites, "causal" if causal else "same")


def _is_causal(model: PreTrainedModel, config: Any, layers: nn.ModuleList, sites: list[list[Site]]) -> bool:
    """Whether tokens see only what was before them, in a model that is a decoder or an encoder alone."""
    if getattr(config, "is_decoder", False):
        return True
    mixers = [attention_of(layer, own) for layer, own in zip(layers, sites, strict=True) if own]
    causal = next((mixer.is_causal for mixer in mixers if hasattr(mixer, "is_causal")), model.can_generate())
    return bool(causal) and getattr(config, "is_causal", True) is not False


def attention_of(layer: nn.Module, sites: list[Site]) -> Any:
    """What the first site of a layer is in."""
    return layer.get_submodule(sites[0].path.rpartition(".")[0])
