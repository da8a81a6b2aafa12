"""Masks of attention: making them, and what they and positions say of padding and packed sequences.

Dims: B batch, T tokens, N packed sequences.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import masking_utils
from transformers.cache_utils import Cache, CacheLayerMixin

from .caches import past_length
from .names import CACHE


def create_causal_mask(config: Any, x: Tensor, mask: Any, cache: Cache | None, position_ids: Tensor | None) -> Any:
    """The mask of causal attention in the format of its implementation; arguments as of transformers' function."""
    return masking_utils.create_causal_mask(
        config=config, inputs_embeds=x, attention_mask=mask, position_ids=position_ids, **{CACHE: cache}
    )


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
            too short, or of another number of dimensions.
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
    if attention_mask.dim() not in (2, 4):
        raise ValueError(f"attention_mask must be [B, past + T] or [B, 1, T, keys]; got {list(attention_mask.shape)}")
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
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise TypeError(
            f"attention_mask [B, 1, T, keys] must be boolean, True where a token may look, or floating point, about 0 "
            f"there; got {mask.dtype}"
        )
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
