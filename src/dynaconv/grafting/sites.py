"""Where short convolutions go in the layers of other people's models."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn
from transformers import PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from .layouts import Fusion, fusion_of, known_fusions

# Projections of queries, keys and values, as attention modules name them.
_SEPARATE = (
    ("q_proj", "k_proj", "v_proj"),
    ("q_proj.linear", "k_proj.linear", "v_proj.linear"),
    ("query", "key", "value"),
    ("query_proj", "key_proj", "value_proj"),
    ("project_q", "project_k", "project_v"),
    ("Wq", "Wk", "Wv"),
    ("q_lin", "k_lin", "v_lin"),
    ("q", "k", "v"),
)
# Multi-head latent attention (DeepSeek-V2): queries, and keys with values, behind their compression.
_LATENT = ("q_b_proj", "kv_b_proj")
_GATED = (("gate_proj", "up_proj"), ("w1", "w3"))  # projections of a feed-forward network that share their input
# What these see is no sequence, but tokens picked by a router; or they are the router.
_ROUTED = {"experts", "router", "gate", "shared_expert_gate"}
# Attention to another sequence, or to what another part of the network has compressed.
_ELSEWHERE = {"encoder_attn", "crossattention", "cross_attn", "cross_attention", "EncDecAttention"}
_ELSEWHERE |= {"indexer", "compressor"}
# Linear layers that see groups of channels or several copies of a token, or whose weights are used without a call.
_UNLIKE = {"o_a_proj", "relative_pos_embeddings", "altup", "dt_proj"}


class Conv(NamedTuple):
    """A convolution: its name in its group, and its channels."""

    name: str
    dim: int


@dataclass(frozen=True)
class Site:
    """A linear layer whose output is convolved.

    Attributes:
        path: of the linear layer in its layer of the network.
        group: name of the group of convolutions that share its input.
        in_dim: size of that input.
        convs: the convolution of the output; those of its parts where it makes several, None where one has none.
        fusion: how the parts follow one another, if there are any.
        anew: whether its input is all tokens of the cache, of which it makes keys and values anew with every call.
    """

    path: str
    group: str
    in_dim: int
    convs: tuple[Conv | None, ...]
    fusion: Fusion | None = None
    anew: bool = False


def find_sites(config: PreTrainedConfig, layer: nn.Module, placement: str) -> list[Site]:
    """The sites of a layer.

    Args:
        config: of the model's text part.
        layer: of its decoder or encoder.
        placement: letters of "qkv", or "all_linear".
    """
    letters = "qkv" if placement == "all_linear" else placement
    sites = [site for path, module in layer.named_modules() for site in _attention(config, path, module, letters)]
    if placement != "all_linear":
        return sites
    taken = {site.path for site in sites}
    for path, linear in layer.named_modules():
        if not isinstance(linear, (nn.Linear, Conv1D)) or path in taken or _excluded(path):
            continue
        parent, _, name = path.rpartition(".")
        shared = name in {n for names in _GATED if hasattr(layer.get_submodule(parent), names[0]) for n in names}
        group = f"{parent}.gate_up" if shared else path
        sites.append(Site(path, _key(group), _sizes(linear)[0], (Conv(name, _sizes(linear)[1]),)))
    return sites


def describe(model: nn.Module) -> str:
    """The linear layers of a model, and what is known of attention, for errors."""
    linears = [path.split(".")[-1] for path, m in model.named_modules() if isinstance(m, (nn.Linear, Conv1D))]
    known = [", ".join(names) for names in _SEPARATE] + [", ".join(_LATENT), *known_fusions()]
    return f"it has {', '.join(dict.fromkeys(linears)) or 'no linear layers'}; known are {'; '.join(known)}"


def _excluded(path: str) -> bool:
    parts = set(path.split("."))
    return bool(parts & (_ROUTED | _ELSEWHERE | _UNLIKE))


def _attention(config: PreTrainedConfig, path: str, module: nn.Module, letters: str) -> Iterator[Site]:
    """The sites of an attention module; none of any other module."""
    if _excluded(path):
        return
    group = _key(f"{path}.qkv")
    linears = {name: child for name, child in module.named_modules() if isinstance(child, (nn.Linear, Conv1D))}
    fused = {name: fusion for name in linears if (fusion := fusion_of(config, name, linears[name])) is not None}
    names = next((names for names in _SEPARATE if names[0] in linears), ())
    if "kv_b_proj" in linears and not names:
        names = _LATENT[:1]
    if not names and not fused:
        return
    # Layers that read the keys and values of another have none of their own.
    shared = getattr(module, "is_kv_shared_layer", False)
    for letter, name in zip("qkv", names, strict=False):
        if letter in letters and name in linears and name not in fused and not (shared and letter != "q"):
            in_dim, dim = _sizes(linears[name])
            own = group if name not in _LATENT else _key(f"{path}.{name}")
            yield Site(f"{path}.{name}".strip("."), own, in_dim, (Conv(letter, dim),))
    for name, fusion in fused.items():
        convs = tuple(
            Conv(letter, fusion.groups * size) if letter is not None and letter in letters else None
            for letter, size in fusion.parts
        )
        if any(convs):
            own = group if name not in _LATENT else _key(f"{path}.{name}")
            yield Site(f"{path}.{name}".strip("."), own, _sizes(linears[name])[0], convs, fusion, name == _LATENT[1])


def _key(path: str) -> str:
    return path.strip(".").replace(".", "_")


def _sizes(linear: nn.Module) -> tuple[int, int]:
    """Input and output channels."""
    if isinstance(linear, nn.Linear):
        return linear.in_features, linear.out_features
    weight = linear.get_parameter("weight")
    return weight.shape[0], weight.shape[1]
