"""fairseq's weights under our names, whichever version wrote them."""

import re
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

# Kept by fairseq and no weights; `conv_bias` of main is never used, and never initialised.
_IGNORED = re.compile(r".*(\.version|\._float_tensor|\.conv\.conv_bias)")
_OLDER = (
    (r"\.layer_norms\.0\.", ".layer_norm1."),
    (r"\.layer_norms\.1\.", ".layer_norm2."),
    (r"^decoder\.embed_out$", "decoder.output_projection.weight"),
)
# From ours to those of fairseq's main, in this order.
_RENAMED = (
    (r"^lm_head\.head\.", "decoder.adaptive_softmax.head.word_proj."),
    (r"^lm_head\.choice\.", "decoder.adaptive_softmax.head.class_proj."),
    (r"^lm_head\.projections\.(\d+)\.", r"decoder.adaptive_softmax.tail.\1.0."),
    (r"^lm_head\.tails\.(\d+)\.", r"decoder.adaptive_softmax.tail.\1.2."),
    (r"^lm_head\.", "decoder.output_projection."),
    (r"^model\.((en|de)coder\.)", r"\1"),
    (r"^model\.", "decoder."),
    (r"^encoder\.(.*)\.mixer_norm\.", r"encoder.\1.layer_norm1."),
    (r"^encoder\.(.*)\.ffn_norm\.", r"encoder.\1.layer_norm2."),
    (r"\.mixer_norm\.", ".conv_layer_norm."),
    (r"\.ffn_norm\.", ".final_layer_norm."),
    (r"\.norm\.", ".layer_norm."),
    (r"\.embeddings\.tokens\.words\.(\d+)\.", r".embed_tokens.embeddings.\1.0."),
    (r"\.embeddings\.tokens\.projections\.(\d+)\.", r".embed_tokens.embeddings.\1.1."),
    (r"\.embeddings\.tokens\.", ".embed_tokens."),
    (r"\.embeddings\.positions\.", ".embed_positions."),
    (r"\.mixer\.in_proj\.", ".linear1."),
    (r"\.mixer\.out_proj\.", ".linear2."),
    (r"\.mixer\.conv\.filter_proj\.", ".conv.weight_linear."),
    (r"\.mixer\.conv\.", ".conv."),
    (r"\.ffn\.in_proj\.", ".fc1."),
    (r"\.ffn\.out_proj\.", ".fc2."),
    (r"\.cross_attention\.", ".encoder_attn."),
    (r"\.cross_norm\.", ".encoder_attn_layer_norm."),
)
_TAIL = re.compile(r"decoder\.adaptive_softmax\.tail\.\d+\.(?P<part>[02])\.weight")


def count_layers(weights: dict[str, Tensor]) -> dict[str, int]:
    """{"encoder", "decoder"}: how many layers there are weights of."""
    found = {match.groups() for name in weights if (match := re.match(r"(encoder|decoder)\.layers\.(\d+)\.", name))}
    return {side: sum(owner == side for owner, _ in found) for side in ("encoder", "decoder")}


def load_weights(model: PreTrainedModel, weights: dict[str, Tensor]) -> None:
    """Give a model on the meta device the weights of a checkpoint, in fp32.

    Args:
        model: of the checkpoint's configuration.
        weights: by fairseq's names, as they were in the file.

    Raises:
        ValueError: a weight is missing, left over or of another shape, or matrices that must be one differ.
    """
    weights = _modernize(weights, getattr(model.config, "tie_projections", False))
    for name, source in model.all_tied_weights_keys.items():
        _share(weights, _fairseq_name(name), _fairseq_name(source))
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
        if not weights[name].is_floating_point():
            raise ValueError(f"{name} must be of floating point; the checkpoint has {weights[name].dtype}")
        if weights[name].shape != ours[ours_name].shape:
            raise ValueError(
                f"{name} must have the shape {list(ours[ours_name].shape)} as the options and the dictionaries say; "
                f"the checkpoint has {list(weights[name].shape)}"
            )
    # Copies: the file may store weights in one place that the options do not tie.
    copy: dict[str, Any] = {"dtype": torch.float32, "copy": True, "memory_format": torch.contiguous_format}
    model.load_state_dict({ours_name: weights[name].to(**copy) for ours_name, name in names.items()}, assign=True)


def _modernize(weights: dict[str, Tensor], tied_projections: bool) -> dict[str, Tensor]:
    """The names and shapes of fairseq's main, but with filters as [H, W], and adaptive softmax as where it is tied.

    That is with words apart from clusters, and projections as those of the input.
    """
    modern: dict[str, Tensor] = {}
    clusters = sum(match["part"] == "2" for name in weights if (match := _TAIL.fullmatch(name)))
    for name, tensor in weights.items():
        if _IGNORED.fullmatch(name):
            continue
        name = _rename(name, _OLDER)
        if match := re.fullmatch(r"(.*\.encoder_attn\.)in_proj_(weight|bias)", name):
            if len(tensor) % 3:
                raise ValueError(f"{name} must be queries, keys and values; got {list(tensor.shape)}")
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                modern[f"{match[1]}{part}_proj.{match[2]}"] = piece
        elif name.endswith(".conv.weight") and tensor.dim() == 3 and tensor.shape[1] == 1:
            modern[name] = tensor.squeeze(1)
        elif name == "decoder.adaptive_softmax.head.weight" and 0 < clusters < len(tensor):
            modern["decoder.adaptive_softmax.head.word_proj.weight"] = tensor[:-clusters]
            modern["decoder.adaptive_softmax.head.class_proj.weight"] = tensor[-clusters:]
        elif not tied_projections and (match := _TAIL.fullmatch(name)) and match["part"] == "0":
            modern[name] = tensor.movedim(0, -1)
        else:
            modern[name] = tensor
    return modern


def _share(weights: dict[str, Tensor], name: str, source: str) -> None:
    """One matrix under both names; a version that stored it under one or under both."""
    if source not in weights:
        return  # reported with everything else that is missing
    if not torch.equal(weights.setdefault(name, weights[source]).float(), weights[source].float()):
        raise ValueError(f"{name} and {source} must be equal as the options say; in the checkpoint they differ")


def _fairseq_name(name: str) -> str:
    return _rename(name, _RENAMED)


def _rename(name: str, patterns: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in patterns:
        name = re.sub(pattern, replacement, name)
    return name
