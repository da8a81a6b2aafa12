"""What the operators are given and what they cost. What PyTorch is told of them, and how they are sharded, follows."""

from collections.abc import Callable
from typing import NamedTuple

Shapes = dict[str, tuple[int, ...]]


class Argument(NamedTuple):
    """A tensor of an operator.

    Attributes:
        name: of the argument.
        dims: a letter for each of its dims: B batch, T tokens, D channels, H heads, W taps, R rank, N sequences.
        optional: it may be None.
    """

    name: str
    dims: str
    optional: bool = False

    def axis(self, letters: str) -> int | None:
        """The first dim that has one of these letters."""
        return next((i for i, dim in enumerate(self.dims) if dim in letters), None)


class Operator(NamedTuple):
    """An operator `dynaconv::NAME_conv` of PyTorch.

    Attributes:
        name: of its module in every implementation.
        own: its filters, or what they are made of; one pass gives the gradients of all of them.
        static: whether static filters may be added.
        flops: operations for every number of the output, of the shapes {argument: shape}.
        backward_flops: the same of its gradients.
    """

    name: str
    own: tuple[Argument, ...]
    static: bool
    flops: Callable[[Shapes], int]
    backward_flops: Callable[[Shapes], int]

    @property
    def arguments(self) -> tuple[Argument, ...]:
        """All tensors in their order, but for `cu_seqlens`, which follows and has no gradient."""
        static = (Argument("static", "HW", optional=True),) if self.static else ()
        rest = (Argument("bias", "D", optional=True), Argument("past", "NWD", optional=True))
        return (Argument("x", "BTD"), *self.own, *static, *rest)


def _taps(shapes: Shapes, name: str = "filters") -> int:
    """A product and a sum for every tap; one more sum where static filters are added."""
    return (3 if "static" in shapes else 2) * shapes[name][-1]


def _twice(shapes: Shapes) -> int:
    """As much as the operator for the gradient of x, and again for that of the filters."""
    return 2 * _taps(shapes)


def _lowrank(shapes: Shapes) -> int:
    """The filters, products of codes and basis, and the convolution with them."""
    R, _, W = shapes["basis"]
    return 2 * R * W + _taps(shapes, "basis")


def _lowrank_backward(shapes: Shapes) -> int:
    """The filters once more and the gradient of x; then a product of matrices each for codes and basis."""
    R, _, W = shapes["basis"]
    return _lowrank(shapes) + (4 * R + 2) * W


OPERATORS = {
    operator.name: operator
    for operator in (
        Operator("static", (Argument("filters", "HW"),), False, _taps, _twice),
        Operator("dynamic", (Argument("filters", "BTHW"),), True, _taps, _twice),
        Operator("lowrank", (Argument("codes", "BTR"), Argument("basis", "RDW")), True, _lowrank, _lowrank_backward),
    )
}
