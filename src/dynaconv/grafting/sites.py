"""Where short convolutions go in the decoder layers of other people's models."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

_SEPARATE = {"q": "q_proj", "k": "k_proj", "v": "v_proj"}
# Projections of q, k and v in one matrix: how their channels follow one another, by model type and name.
_FUSED = {
    ("gpt2", "c_attn"): "concatenated",
    ("gpt_neox", "query_key_value"): "per head",
    ("phi3", "qkv_proj"): "concatenated",
}
_GATED = (("gate_proj", "up_proj"), ("w1", "w3"))  # projections of a feed-forward network that share their input
# What these see is no sequence, but tokens picked by a router; or they are the router.
_ROUTED = {"experts", "router", "gate", "shared_expert_gate"}


@dataclass(frozen=True)
class Fusion:
    """How the channels of q, k and v, of so many heads each, follow one another in one projection [B, T, D]."""

    order: str
    heads: tuple[int, int, int]

    def split(self, y: Tensor) -> list[Tensor]:
        """[B, T, D] to q, k and v."""
        if self.order == "per head":
            return [part.flatten(2) for part in y.unflatten(2, (self.heads[0], 3, -1)).unbind(3)]
        return list(y.split(self.sizes(y.shape[2]), dim=2))

    def merge(self, parts: list[Tensor]) -> Tensor:
        """The inverse of :meth:`split`."""
        if self.order == "per head":
            return torch.stack([part.unflatten(2, (self.heads[0], -1)) for part in parts], dim=3).flatten(2)
        return torch.cat(parts, dim=2)

    def sizes(self, dim: int) -> list[int]:
        """Channels of q, k and v."""
        return [heads * (dim // sum(self.heads)) for heads in self.heads]


class Conv(NamedTuple):
    """A convolution: its name in its group, and its channels."""

    name: str
    dim: int


@dataclass(frozen=True)
class Site:
    """A linear layer whose output is convolved.

    Attributes:
        path: of the linear layer in its decoder layer.
        group: name of the group of convolutions that share its input.
        in_dim: size of that input.
        convs: the convolution of the output; those of q, k and v where these are fused, None where one has none.
        fusion: how q, k and v are fused, if they are.
    """

    path: str
    group: str
    in_dim: int
    convs: tuple[Conv | None, ...]
    fusion: Fusion | None = None


def decoder_layers(model: PreTrainedModel) -> tuple[Any, nn.ModuleList]:
    """The backbone of a causal language model, and its decoder layers.

    Raises:
        ValueError: not a causal language model, or it keeps its layers in no known way.
    """
    config = model.config.get_text_config(decoder=True)
    if config.is_encoder_decoder or getattr(config, "add_cross_attention", False) or not model.can_generate():
        raise ValueError(f"model must be a causal language model, a decoder on its own; got {type(model).__name__}")
    backbone = model.get_decoder()
    for child in backbone.children():
        if isinstance(child, nn.ModuleList) and len(child) == config.num_hidden_layers:
            return backbone, child
    raise ValueError(
        f"model must keep its {config.num_hidden_layers} decoder layers in a ModuleList of its decoder; got "
        f"{type(model).__name__} with {', '.join(name for name, _ in backbone.named_children())}"
    )


def find_sites(config: PreTrainedConfig, layer: nn.Module, placement: str) -> list[Site]:
    """The sites of a decoder layer.

    Args:
        config: of the model.
        layer: the decoder layer.
        placement: letters of "qkv", or "all_linear".
    """
    letters = "qkv" if placement == "all_linear" else placement
    sites = [site for path, module in layer.named_modules() for site in _attention(config, path, module, letters)]
    if placement != "all_linear":
        return sites
    taken = {site.path for site in sites}
    for path, linear in layer.named_modules():
        if isinstance(linear, (nn.Linear, Conv1D)) and path not in taken and not _ROUTED.intersection(path.split(".")):
            parent, _, name = path.rpartition(".")
            shared = name in {n for names in _GATED if hasattr(layer.get_submodule(parent), names[0]) for n in names}
            group = f"{parent}.gate_up" if shared else path
            sites.append(Site(path, _key(group), _sizes(linear)[0], (Conv(name, _sizes(linear)[1]),)))
    return sites


def describe(layers: nn.ModuleList) -> str:
    """The linear layers of the first decoder layer, and what is known of attention, for errors."""
    present = [path for path, module in layers[0].named_modules() if isinstance(module, (nn.Linear, Conv1D))]
    known = [", ".join(_SEPARATE.values())] + [f"{name} of {kind}" for kind, name in _FUSED]
    return f"its layers have {', '.join(present) or 'no linear layers'}; known are {'; '.join(known)}"


def _attention(config: PreTrainedConfig, path: str, module: nn.Module, letters: str) -> Iterator[Site]:
    """The sites of an attention module; none of any other module."""
    children, group = dict(module.named_children()), _key(f"{path}.qkv")
    if isinstance(children.get("q_proj"), nn.Linear) and not ("q" in letters and _has_gate(children)):
        for letter, name in _SEPARATE.items():
            if letter in letters and isinstance(children.get(name), nn.Linear):
                in_dim, dim = _sizes(children[name])
                yield Site(f"{path}.{name}", group, in_dim, (Conv(letter, dim),))
    for (model_type, name), order in _FUSED.items():
        if config.model_type == model_type and name in children:
            heads = config.num_attention_heads
            shared = heads if order == "per head" else getattr(config, "num_key_value_heads", heads)
            fusion = Fusion(order, (heads, shared, shared))
            in_dim, dim = _sizes(children[name])
            parts = [Conv(*part) for part in zip("qkv", fusion.sizes(dim), strict=True)]
            yield Site(f"{path}.{name}", group, in_dim, tuple(p if p.name in letters else None for p in parts), fusion)


def _has_gate(children: dict[str, nn.Module]) -> bool:
    """Whether the projection of queries makes a gate of the output too, as in Qwen3-Next."""
    q, o = children["q_proj"], children.get("o_proj")
    return isinstance(q, nn.Linear) and isinstance(o, nn.Linear) and q.out_features != o.in_features


def _key(path: str) -> str:
    return path.strip(".").replace(".", "_")


def _sizes(linear: nn.Module) -> tuple[int, int]:
    """Input and output channels."""
    if isinstance(linear, nn.Linear):
        return linear.in_features, linear.out_features
    weight = linear.get_parameter("weight")
    return weight.shape[0], weight.shape[1]
