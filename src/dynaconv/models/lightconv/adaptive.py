"""Input and output of language models with large vocabularies: fewer dimensions for rarer words.

Dims: B batch, T tokens, E d_model, V vocabulary.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def bands(vocab_size: int, dim: int, cutoffs: list[int], factor: float) -> list[tuple[int, int, int]]:
    """(begin, end, dimension) of the bands of a vocabulary; the dimension of band i is `dim` // factor^i."""
    ends = pairwise([0, *cutoffs, vocab_size])
    return [(begin, end, int(dim // factor**i)) for i, (begin, end) in enumerate(ends)]


class AdaptiveEmbedding(nn.Module):
    """Adaptive input (Baevski and Auli 2019): every band of words has its dimension, and a projection to E.

    Args:
        vocab_size: V.
        dim: E.
        cutoffs: ends of the bands but the last.
        factor: see :func:`bands`.
        padding_idx: in the first band.
    """

    def __init__(self, vocab_size: int, dim: int, cutoffs: list[int], factor: float, padding_idx: int | None):
        super().__init__()
        self.dim, self.bands = dim, bands(vocab_size, dim, cutoffs, factor)
        self.words = nn.ModuleList(
            nn.Embedding(end - begin, size, padding_idx if begin == 0 else None) for begin, end, size in self.bands
        )
        self.projections = nn.ModuleList(nn.Linear(size, dim, bias=False) for _, _, size in self.bands)

    def forward(self, ids: Tensor) -> Tensor:
        """Ids [B, T] to [B, T, E]."""
        parts, places = [], []
        for (begin, end, _), words, projection in zip(self.bands, self.words, self.projections, strict=True):
            place = ((ids >= begin) & (ids < end)).flatten().nonzero().squeeze(1)
            parts.append(projection(words(ids.flatten()[place] - begin)))
            places.append(place)
        y = torch.cat(parts)
        return y.new_empty(y.shape).index_copy(0, torch.cat(places), y).view(*ids.shape, self.dim)


class AdaptiveSoftmax(nn.Module):
    """Adaptive softmax (Grave et al. 2017): frequent words and clusters of rarer ones first, then words in the cluster.

    p(w | x) = softmax([head; choice] x)_w for the words of the head, and for those of a cluster c the probability of c
    in it times softmax(tail_c projection_c^T x)_w

    Args:
        vocab_size: V.
        dim: E.
        cutoffs: ends of the head and of the clusters but the last.
        factor: see :func:`bands`; the head is band 0.
        dropout: on the projected input of the clusters.
    """

    def __init__(self, vocab_size: int, dim: int, cutoffs: list[int], factor: float, dropout: float):
        super().__init__()
        _, *self.clusters = bands(vocab_size, dim, cutoffs, factor)
        self.dropout = dropout
        self.head = nn.Linear(dim, cutoffs[0], bias=False)
        self.choice = nn.Linear(dim, len(self.clusters), bias=False)
        self.tails = nn.ModuleList(nn.Linear(size, end - begin, bias=False) for begin, end, size in self.clusters)
        # From a cluster's dimension to E and applied transposed, as they may be those of the input.
        self.projections = nn.ModuleList(nn.Linear(size, dim, bias=False) for _, _, size in self.clusters)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, E] to log-probabilities, [B, T, V] fp32 or wider: logits of which the softmax is the same."""
        head = _log_softmax(self._first(x))
        frequent, clusters = head.tensor_split([head.shape[-1] - len(self.clusters)], dim=-1)
        rare = [_log_softmax(self._tail(i, x)) + clusters[..., i, None] for i in range(len(self.clusters))]
        return torch.cat([frequent, *rare], dim=-1)

    def loss(self, x: Tensor, labels: Tensor) -> Tensor:
        """Sum of the cross-entropy, nats: a cluster is computed for its own words only.

        Args:
            x: [N, E].
            labels: [N] int64, -100 where there is none.
        """
        choices = labels.clone()
        loss = x.new_zeros((), dtype=torch.promote_types(x.dtype, torch.float32))
        for i, (begin, end, _) in enumerate(self.clusters):
            inside = (labels >= begin) & (labels < end)
            choices[inside] = self.clusters[0][0] + i
            loss = loss + _cross_entropy(self._tail(i, x[inside]), labels[inside] - begin)
        return loss + _cross_entropy(self._first(x), choices)

    def _first(self, x: Tensor) -> Tensor:
        return torch.cat([self.head(x), self.choice(x)], dim=-1)

    def _tail(self, cluster: int, x: Tensor) -> Tensor:
        projected = F.linear(x, self.projections[cluster].weight.T)  # pyrefly: ignore [bad-argument-type]
        return self.tails[cluster](F.dropout(projected, self.dropout, self.training))


def _log_softmax(logits: Tensor) -> Tensor:
    return logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.nll_loss(_log_softmax(logits), labels, reduction="sum")
