"""What a decoder of ours keeps between tokens, as a Hugging Face cache. The only file that touches cache internals."""

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin, DynamicCache, DynamicLayer, EncoderDecoderCache


class ConvStateLayer(CacheLayerMixin):
    """The last W-1 inputs of a causal convolution, [B, W-1, D] oldest first, and the number of tokens seen.

    transformers' own convolution layers count no tokens, so that `generate()` fails on a model that has only those.
    """

    is_croppable = False

    def __init__(self) -> None:
        super().__init__()
        self.state: Tensor | None = None
        self.seen = 0

    def update_state(self, state: Tensor, tokens: int) -> None:
        """Store the state after `tokens` more tokens."""
        self.state = state
        self.seen += tokens

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the first `update_state` sets the shape."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Not for a convolution.

        Raises:
            TypeError: always.
        """
        raise TypeError("this layer is a convolution and caches its inputs, not keys and values")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the tokens a mask would cover."""
        return self.seen + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens seen."""
        return self.seen

    def get_max_length(self) -> int:
        """No limit."""
        return -1

    def reset(self) -> None:
        """Forget everything."""
        self.state, self.seen = None, 0

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Row i continues what was row `beam_idx[i]`."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices`."""
        if self.state is not None:
            self.state = self.state.index_select(0, indices.to(self.state.device))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        if self.state is not None:
            self.state = self.state.repeat_interleave(repeats, dim=0)


def make_cache(mixer: str, layers: int) -> EncoderDecoderCache:
    """An empty cache for a decoder of `layers` layers: convolution states or keys and values, and cross-attention."""
    own = DynamicCache()
    own.layers = [DynamicLayer() if mixer == "attention" else ConvStateLayer() for _ in range(layers)]
    own.layer_class_to_replicate = None
    return EncoderDecoderCache(own, DynamicCache())
