"""fairseq's weights under our names, whichever version wrote them."""

import re
from typing import Any

import torch
from torch import Tensor, nn

# Kept by fairseq and no weights; `conv_bias` of main is never used, and never initialised.
_IGNORED = re.compile(r".*(\.version|\._float_tensor|\.conv\.conv_bias)")
_OLDER = (
    (re.compile(r"\.layer_norms\.0\."), ".layer_norm1."),
    (re.compile(r"\.layer_norms\.1\."), ".layer_norm2."),
    (re.compile(r"^decoder\.embed_out$"), "decoder.output_projection.weight"),
)
# From ours to those of fairseq's main, in this order.
_RENAMED = (
    ("lm_head.", "decoder.output_projection."),
    ("model.", ""),
    (".embeddings.tokens.", ".embed_tokens."),
    (".embeddings.positions.", ".embed_positions."),
    (".mixer.in_proj.", ".linear1."),
    (".mixer.out_proj.", ".linear2."),
    (".mixer.conv.filter_proj.", ".conv.weight_linear."),
    (".mixer.conv.", ".conv."),
    (".ffn.in_proj.", ".fc1."),
    (".ffn.out_proj.", ".fc2."),
    (".cross_attention.", ".encoder_attn."),
    (".cross_norm.", ".encoder_attn_layer_norm."),
    (".norm.", ".layer_norm."),
)
_NORMS = {
    "encoder": {".mixer_norm.": ".layer_norm1.", ".ffn_norm.": ".layer_norm2."},
    "decoder": {".mixer_norm.": ".conv_layer_norm.", ".ffn_norm.": ".final_layer_norm."},
}


def count_layers(weights: dict[str, Tensor]) -> dict[str, int]:
    """{"encoder", "decoder"}: how many layers there are weights of."""
    found = {match.groups() for name in weights if (match := re.match(r"(encoder|decoder)\.layers\.(\d+)\.", name))}
    return {side: sum(owner == side for owner, _ in found) for side in ("encoder", "decoder")}


def load_weights(model: nn.Module, weights: dict[str, Tensor], sharing: str) -> None:
    """Give a model on the meta device the weights of a checkpoint, in fp32.

    Args:
        model: of the checkpoint's configuration.
        weights: by fairseq's names, as they were in the file.
        sharing: `share_embeddings` of the configuration.

    Raises:
        ValueError: a weight is missing, left over or of another shape, or matrices that must be one differ.
    """
    weights = _modernize(weights)
    if sharing != "none":
        _share(weights, "decoder.output_projection.weight", "decoder.embed_tokens.weight")
    if sharing == "all":
        _share(weights, "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    ours = model.state_dict()
    names = {ours_name: _fairseq_name(ours_name) for ours_name in ours}
    for problem, found in (
        ("lacks", names.values() - weights.keys()),
        ("has, beyond what its options say,", weights.keys() - set(names.values())),
    ):
        if found:
            shown = ", ".join(sorted(found)[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
            raise ValueError(f"the checkpoint {problem} {shown}")
    for ours_name, name in names.items():
        if weights[name].shape != ours[ours_name].shape:
            raise ValueError(
                f"{name} must have the shape {list(ours[ours_name].shape)} as the options and the dictionaries say; "
                f"the checkpoint has {list(weights[name].shape)}"
            )
    # Copies: the file may store weights in one place that the options do not tie.
    copy: dict[str, Any] = {"dtype": torch.float32, "copy": True, "memory_format": torch.contiguous_format}
    model.load_state_dict({ours_name: weights[name].to(**copy) for ours_name, name in names.items()}, assign=True)


def _modernize(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names and shapes of fairseq's main, except that filters are [H, W]."""
    modern: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if _IGNORED.fullmatch(name):
            continue
        for pattern, replacement in _OLDER:
            name = pattern.sub(replacement, name)
        if match := re.fullmatch(r"(.*\.encoder_attn\.)in_proj_(weight|bias)", name):
            if len(tensor) % 3:
                raise ValueError(f"{name} must be queries, keys and values; got {list(tensor.shape)}")
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                modern[f"{match[1]}{part}_proj.{match[2]}"] = piece
        elif name.endswith(".conv.weight") and tensor.dim() == 3 and tensor.shape[1] == 1:
            modern[name] = tensor.squeeze(1)
        else:
            modern[name] = tensor
    return modern


def _share(weights: dict[str, Tensor], name: str, source: str) -> None:
    """One matrix under both names; a version that stored it under one or under both."""
    if source not in weights:
        return  # reported with everything else that is missing
    if not torch.equal(weights.setdefault(name, weights[source]), weights[source]):
        raise ValueError(f"{name} and {source} must be equal as the options say; in the checkpoint they differ")


def _fairseq_name(name: str) -> str:
    for ours, theirs in (*_RENAMED, *_NORMS["encoder" if ".encoder." in name else "decoder"].items()):
        name = name.replace(ours, theirs)
    return name
