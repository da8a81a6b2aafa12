"""The operators `dynaconv::...` of PyTorch: autograd, fake tensors for torch.compile and export, FLOPs.

They are what a compiler, a dispatch mode, a tracer or a subclass of tensors sees; calls that nothing has to see go past
them (:mod:`dynaconv.dispatch`). Gradients of gradients, of any order, are those of the reference.

`implementation` names one; a gradient runs where its forward pass ran. Where that refuses the tensors, in a process
without kernels for one, these operators compute the reference: graphs that were made elsewhere work there.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils.flop_counter import FlopCounterMode, flop_registry, register_flop_formula

from . import Tensors
from .choice import IMPLEMENTATIONS
from .operators import OPERATORS, Operator, Shapes
from .options import Options
from .reference.operators import gradients_of_gradients

_library = torch.library.Library("dynaconv", "DEF")
_OPTIONS = "int left, bool silu, bool residual, float scale, str implementation"


def forward(
    operator: Operator, tensors: Tensors, cu_seqlens: Tensor | None, options: Options, implementation: str
) -> Tensor:
    """The output of an operator, [B, T, D], through PyTorch's dispatcher."""
    function = getattr(torch.ops.dynaconv, f"{operator.name}_conv")
    return function(*tensors, cu_seqlens, *options, implementation)


def backward(
    operator: Operator, grad: Tensor, tensors: Tensors, cu_seqlens: Tensor | None, options: Options,
    implementation: str, needed: Sequence[bool],
) -> list[Tensor | None]:  # fmt: skip
    """The gradients of the tensors that exist and need one, with gradients of their own."""
    function = getattr(torch.ops.dynaconv, f"{operator.name}_conv_backward")
    results = function(grad, *tensors, cu_seqlens, *options, implementation, [bool(need) for need in needed])
    return [r if exists else None for r, exists in zip(results, _exist(tensors, needed), strict=True)]


def _exist(tensors: Tensors, needed: Sequence[bool]) -> list[bool]:
    """Which tensors have a gradient."""
    return [tensor is not None and need for tensor, need in zip(tensors, needed, strict=True)]


def _register(operator: Operator) -> None:
    arguments, name = operator.arguments, f"{operator.name}_conv"
    count = len(arguments)
    tensors = ", ".join(f"Tensor{'?' if argument.optional else ''} {argument.name}" for argument in arguments)
    inputs, outputs = f"{tensors}, Tensor? cu_seqlens, {_OPTIONS}", ", ".join("Tensor" for _ in arguments)
    tags = (torch.Tag.pt2_compliant_tag,)
    _library.define(f"{name}({inputs}) -> Tensor", tags=tags)
    _library.define(f"{name}_backward(Tensor grad, {inputs}, bool[] needed) -> ({outputs})", tags=tags)

    def parts(values: Sequence[Any]) -> tuple[Sequence[Any], Tensor | None, Options, str]:
        """Tensors, ends of sequences, options and implementation."""
        return values[:count], values[count], Options(*values[count + 1 : count + 5]), values[count + 5]

    def convolve(*values: Any) -> Tensor:
        tensors, cu_seqlens, options, implementation = parts(values)
        y = _able(implementation, tensors).forward(operator, tensors, cu_seqlens, options)
        return y.clone() if y is tensors[0] else y

    def differentiate(grad: Tensor, *values: Any) -> tuple[Tensor, ...]:
        tensors, cu_seqlens, options, implementation = parts(values)
        results = _able(implementation, tensors).backward(operator, grad, tensors, cu_seqlens, options, values[-1])
        return tuple(grad.new_empty(0) if result is None else result for result in results)

    def fake_gradients(grad: Tensor, *values: Any) -> tuple[Tensor, ...]:
        exist = _exist(values[:count], values[-1])
        return tuple(t.new_empty(t.shape) if e else grad.new_empty(0) for t, e in zip(values, exist, strict=False))

    def save(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs[: count + 1])
        ctx.options = inputs[count + 1 :]

    def first_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, cu_seqlens = ctx.saved_tensors
        *options, implementation = ctx.options
        needed = ctx.needs_input_grad[:count]
        results = backward(operator, grad, tensors, cu_seqlens, Options(*options), implementation, needed)
        return *results, None, *(None for _ in ctx.options)

    def save_for_second(ctx: Any, inputs: tuple, output: Any) -> None:
        ctx.save_for_backward(*inputs[: count + 2])
        ctx.set_materialize_grads(False)
        ctx.options, ctx.rest = Options(*inputs[count + 2 : count + 6]), len(inputs) - count - 1
        ctx.exists = _exist(inputs[1 : count + 1], inputs[-1])

    def second_gradients(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        grad, *tensors, cu_seqlens = ctx.saved_tensors
        known = [v if exists else None for v, exists in zip(upstream, ctx.exists, strict=True)]
        needed = ctx.needs_input_grad[: count + 1]
        results = gradients_of_gradients(operator, grad, tensors, cu_seqlens, ctx.options, known, needed)
        return *results, *(None for _ in range(ctx.rest))

    def total(flops: Callable[[Shapes], int], *shapes: Any, **_: Any) -> int:
        given = {argument.name: shape for argument, shape in zip(arguments, shapes, strict=False) if shape is not None}
        return math.prod(given["x"]) * flops(given)

    for kind, kernel, fake, gradients, setup, flops in (
        (name, convolve, lambda x, *_: x.new_empty(x.shape), first_gradients, save,
         partial(total, operator.flops)),
        (f"{name}_backward", differentiate, fake_gradients, second_gradients, save_for_second,
         lambda _, *shapes, **keywords: total(operator.backward_flops, *shapes, **keywords)),
    ):  # fmt: skip
        _library.impl(kind, kernel, "CompositeExplicitAutograd")
        torch.library.register_fake(f"dynaconv::{kind}", fake, lib=_library)
        torch.library.register_autograd(f"dynaconv::{kind}", gradients, setup_context=setup, lib=_library)
        register_flop_formula(getattr(torch.ops.dynaconv, kind))(flops)


def _able(implementation: str, tensors: Tensors) -> Any:
    """The implementation, or the reference where it refuses the tensors."""
    chosen = IMPLEMENTATIONS[implementation]
    return chosen if chosen.refuses(tensors) is None else IMPLEMENTATIONS["reference"]


for _operator in OPERATORS.values():
    _register(_operator)


def _tell_running_counters() -> None:
    """A FlopCounterMode copies the formulas when it is made, which may be before the first use of an operator."""
    for mode in _get_current_dispatch_mode_stack():
        counter = getattr(mode, "counter", None)
        if isinstance(counter, FlopCounterMode):
            counter.flop_registry = flop_registry | counter.flop_registry


_tell_running_counters()
