"""How the operators `dynaconv::...` run on DTensors: batches and channels may be sharded, tokens and taps may not.

Importing this module registers the rules. Channels are sharded only where the mesh divides them and all heads evenly.
"""

from typing import Any

import torch
from torch.distributed.tensor import Partial, Replicate, Shard
from torch.distributed.tensor.experimental import register_sharding

from . import library  # noqa: F401 (defines the operators)
from .operators import OPERATORS, Operator

Dims = tuple[tuple[int | None, int | None], ...]


def dims_of(operator: Operator) -> Dims:
    """Where each tensor has its batch and its channels, x first and cu_seqlens last; None: it has none."""
    found = tuple((argument.axis("BN"), argument.axis("DH")) for argument in operator.arguments)
    return (*found, (None, None))


def _placements(dims: Dims, axis: int, missing: Any) -> list[Any]:
    return [missing if (place := dim[axis]) is None else Shard(place) for dim in dims]


def _rules(operator: Operator, backward: bool) -> Any:
    dims = dims_of(operator)

    def strategy(*arguments: Any) -> list[tuple[list[Any], list[Any]]]:
        tensors = arguments[1:] if backward else arguments
        axes = [None, 1] if _divides_evenly(dims, tensors) else [None]
        if tensors[len(dims) - 1] is None:  # the tokens of packed sequences stay together
            axes.append(0)
        rules = []
        for axis in axes:
            if axis is None:
                gradients: list[Any] = [Replicate() for _ in dims[:-1]]
                inputs: list[Any] = [Replicate() for _ in dims]
            else:
                # What a shard lacks of a replicated tensor's gradient, the others have.
                gradients = _placements(dims[:-1], axis, Partial("sum"))
                inputs = _placements(dims, axis, Replicate())
            if backward:
                gradients = [Replicate() if t is None else g for g, t in zip(gradients, tensors, strict=False)]
                rules.append((gradients, _as_given([inputs[0], *inputs], arguments)))
            else:
                rules.append(([inputs[0]], _as_given(inputs, arguments)))
        return rules

    return strategy


def _divides_evenly(dims: Dims, tensors: tuple[Any, ...]) -> bool:
    """Whether shards of the channels hold whole heads, the same number each."""
    size = tensors[0].mesh.size()
    sizes = [t.shape[dim[1]] for t, dim in zip(tensors, dims, strict=False) if t is not None and dim[1] is not None]
    return all(n % size == 0 for n in sizes)


def _as_given(placements: list[Any], arguments: tuple[Any, ...]) -> list[Any]:
    """Placements of the tensors that are there, None for every other argument."""
    padded = placements + [None] * (len(arguments) - len(placements))
    return [None if argument is None else placement for placement, argument in zip(padded, arguments, strict=True)]


for _operator in OPERATORS.values():
    _name, _operators = f"{_operator.name}_conv", torch.ops.dynaconv
    register_sharding(getattr(_operators, _name).default)(_rules(_operator, backward=False))
    register_sharding(getattr(_operators, f"{_name}_backward").default)(_rules(_operator, backward=True))
