"""The problems, and who competes in each."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

import dynaconv

from . import peers
from .peers import Function

OURS = "dynaconv"
REFERENCE = "reference, eager"
COMPILED = "reference, torch.compile"
UNFOLD = "unfold + einsum"
CONV1D = "F.conv1d, depthwise"
COPY = "copy of x"

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Problem:
    """A convolution of x, [B, T, D], to compute.

    Attributes:
        title: for people.
        operator: of the library, a function of x and `parameters`.
        peers: {name: the same function by other means}.
        parameters: shapes of the tensors behind x.
        probabilities: the filters are given as they leave a softmax over their taps.
    """

    title: str
    operator: Function
    peers: dict[str, Function]
    parameters: tuple[tuple[int, ...], ...]
    probabilities: bool = False

    def inputs(self, shape: Shape, dtype: torch.dtype, device: str) -> tuple[Tensor, ...]:
        """Random x and parameters that ask for gradients."""
        x, *parameters = (torch.randn(size, device=device) for size in (shape, *self.parameters))
        if self.probabilities:
            parameters = [filters.softmax(-1) for filters in parameters]
        return tuple(tensor.to(dtype).requires_grad_() for tensor in (x, *parameters))


def problems(shape: Shape, device: str, names: Iterable[str] = ()) -> dict[str, Problem]:
    """The problems called `names`, or all of them.

    Raises:
        ValueError: no problem has such a name, or the shape does not fit their heads.
    """
    B, T, D = shape
    if min(shape) < 1 or D % 64:
        raise ValueError(f"shape must be B T D with D a multiple of 64, for 16 and for D / 64 heads; got {B} {T} {D}")
    static = {UNFOLD: peers.unfold_static, CONV1D: peers.depthwise_conv1d}
    dynamic_softmax = partial(dynaconv.dynamic_conv, normalize="softmax")
    known = {
        "static": Problem(
            "static, W 4",
            dynaconv.static_conv,
            static | (peers.installed_kernels() if device == "cuda" else {}),
            ((D, 4),),
        ),
        "lightconv": Problem("LightConv, W 31, H 16", dynaconv.static_conv, static, ((16, 31),), probabilities=True),
        "headwise": Problem(
            "head-wise, W 4, 64 channels a head",
            dynaconv.dynamic_conv,
            {UNFOLD: peers.unfold_dynamic},
            ((B, T, D // 64, 4),),
        ),
        "dynamicconv": Problem(
            "DynamicConv, W 31, H 16, softmax included",
            dynamic_softmax,
            {UNFOLD: peers.unfold_softmax},
            ((B, T, 16, 31),),
        ),
        "lowrank": Problem(
            "low rank, R 16, W 4", dynaconv.lowrank_conv, {UNFOLD: peers.unfold_lowrank}, ((B, T, 16), (16, D, 4))
        ),
    }
    chosen = tuple(names) or tuple(known)
    if unknown := [name for name in chosen if name not in known]:
        raise ValueError(f"operators must be among {', '.join(known)}; got {', '.join(unknown)}")
    return {name: known[name] for name in chosen}


def contestants(problem: Problem, *, compiled: bool = False, slow: bool = True) -> dict[str, Function]:
    """{name: function of the inputs}; ours comes first, then the reference.

    Args:
        problem: what they compute.
        compiled: add the compiled reference.
        slow: keep the peer that materialises windows.
    """
    field = {OURS: problem.operator, REFERENCE: _reference(problem.operator)}
    if compiled:
        torch.compiler.reset()  # the references of all problems are one code object, whose compilations are limited
        field[COMPILED] = torch.compile(field[REFERENCE], fullgraph=True, dynamic=False)
    return field | {name: peer for name, peer in problem.peers.items() if slow or name != UNFOLD}


def _reference(operator: Function) -> Function:
    """The operator in plain PyTorch."""

    def reference(*inputs: Tensor, **keywords: Any) -> Tensor:
        with dynaconv.backend("reference"):
            return operator(*inputs, **keywords)

    return reference
