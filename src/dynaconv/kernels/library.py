"""The operators `dynaconv::...` of PyTorch: autograd, fake tensors for torch.compile and export, FLOPs.

Every operator has a forward and a backward function in each implementation; what is the same for all of them is here:
the gradients of the activation and of the bias, dtypes, and sequences without tokens. Gradients of gradients, of any
order, are those of the reference.

`implementation` is "cpu" or "triton"; a gradient runs where its forward pass ran. Where the kernels of "cpu" do not
run, in a forked process for one, these operators compute the reference: graphs that were made elsewhere work there.
"""

import math
from collections.abc import Callable
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils.flop_counter import FlopCounterMode, flop_registry, register_flop_formula

from .availability import cpu_kernels_run
from .options import Options, compute_dtype
from .reference.operators import convolve, gradients, gradients_of_gradients
from .sequences import sequence_ends


def _family(implementation: str, name: str) -> ModuleType:
    return import_module(f"{__package__}.{implementation}.{name}")


def _lacks_kernels(implementation: str) -> bool:
    return implementation == "cpu" and not cpu_kernels_run()


def _is_empty(x: Tensor, cu_seqlens: Tensor | None) -> bool:
    """Whether there is no token or no channel; no kernel looks at the sequences then."""
    if x.numel() == 0 and cu_seqlens is not None:
        sequence_ends(cu_seqlens, x.shape[1])
    return x.numel() == 0


def _sum_and_bias_gradients(
    forward: Callable[..., Tensor], grad: Tensor, bias: Tensor | None, options: Options, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Gradients of the sum over the taps, without the factor `scale`, and of the bias.

    Behind SiLU the first is a tensor of its own, [B, T, D] in `dtype`.
    """
    dz = forward(grad=grad) if options.silu else grad
    db = grad.new_empty(0) if bias is None else (dz.sum((0, 1), dtype=dtype) * options.scale).to(bias.dtype)
    return dz, db


@torch.library.custom_op("dynaconv::static_conv", mutates_args=())
def static_conv(
    x: Tensor, filters: Tensor, bias: Tensor | None, state: Tensor | None, cu_seqlens: Tensor | None, left: int,
    silu: bool, residual: bool, scale: float, implementation: str,
) -> Tensor:  # fmt: skip
    """Filters [H, W]; see :func:`dynaconv.static_conv`."""
    options = Options(left, silu, residual, scale)
    if _is_empty(x, cu_seqlens):
        return x.new_empty(x.shape)
    if _lacks_kernels(implementation):
        return convolve("static_conv", (x, filters, bias, state), cu_seqlens, options)
    dtype = compute_dtype(x, filters, bias)
    return _family(implementation, "static").forward(x, filters, bias, state, cu_seqlens, options, dtype)


@torch.library.custom_op("dynaconv::static_conv_backward", mutates_args=())
def static_conv_backward(
    grad: Tensor, x: Tensor, filters: Tensor, bias: Tensor | None, state: Tensor | None, cu_seqlens: Tensor | None,
    left: int, silu: bool, residual: bool, scale: float, implementation: str, of_inputs: bool, of_filters: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, filters, bias and state; those of x and state only if `of_inputs`, of filters if `of_filters`."""
    wanted, tensors, options = (of_inputs, of_filters), (x, filters, bias, state), Options(left, silu, residual, scale)
    if _is_empty(x, cu_seqlens):
        return _zeros(wanted, *tensors)
    if _lacks_kernels(implementation):
        return _reference_gradients("static_conv", wanted, grad, tensors, cu_seqlens, options)
    family = _family(implementation, "static")
    dtype = compute_dtype(x, filters, bias)
    forward = partial(family.forward, x, filters, bias, state, cu_seqlens, options, dtype)
    dz, db = _sum_and_bias_gradients(forward, grad, bias, options, dtype)
    dx, df, dstate = family.backward(dz, grad, x, filters, state, cu_seqlens, options, dtype, of_inputs, of_filters)
    return dx, df, db, _state_gradient(dstate, state, x)


@torch.library.custom_op("dynaconv::dynamic_conv", mutates_args=())
def dynamic_conv(
    x: Tensor, filters: Tensor, static: Tensor | None, bias: Tensor | None, state: Tensor | None,
    cu_seqlens: Tensor | None, left: int, silu: bool, residual: bool, scale: float, implementation: str,
) -> Tensor:  # fmt: skip
    """Filters [B, T, H, W] and static ones [Hs, W]; see :func:`dynaconv.dynamic_conv`."""
    options = Options(left, silu, residual, scale)
    if _is_empty(x, cu_seqlens):
        return x.new_empty(x.shape)
    if _lacks_kernels(implementation):
        return convolve("dynamic_conv", (x, filters, static, bias, state), cu_seqlens, options)
    dtype = compute_dtype(x, filters, static, bias)
    return _family(implementation, "dynamic").forward(x, filters, static, bias, state, cu_seqlens, options, dtype)


@torch.library.custom_op("dynaconv::dynamic_conv_backward", mutates_args=())
def dynamic_conv_backward(
    grad: Tensor, x: Tensor, filters: Tensor, static: Tensor | None, bias: Tensor | None, state: Tensor | None,
    cu_seqlens: Tensor | None, left: int, silu: bool, residual: bool, scale: float, implementation: str,
    of_inputs: bool, of_filters: bool, of_static: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, filters, static filters, bias and state, as far as they are wanted."""
    wanted, tensors = (of_inputs, of_filters, of_static), (x, filters, static, bias, state)
    options = Options(left, silu, residual, scale)
    if _is_empty(x, cu_seqlens):
        return _zeros(wanted, *tensors)
    if _lacks_kernels(implementation):
        return _reference_gradients("dynamic_conv", wanted, grad, tensors, cu_seqlens, options)
    family = _family(implementation, "dynamic")
    dtype = compute_dtype(x, filters, static, bias)
    inputs = (x, filters, static, bias, state, cu_seqlens, options, dtype)
    dz, db = _sum_and_bias_gradients(partial(family.forward, *inputs), grad, bias, options, dtype)
    dx, df, dstate = family.backward(
        dz, grad, x, filters, static, state, cu_seqlens, options, dtype, of_inputs, of_filters
    )
    ds = _static_gradient(of_static, implementation, dz, grad, x, static, state, cu_seqlens, options, dtype)
    return dx, df, ds, db, _state_gradient(dstate, state, x)


@torch.library.custom_op("dynaconv::lowrank_conv", mutates_args=())
def lowrank_conv(
    x: Tensor, codes: Tensor, basis: Tensor, static: Tensor | None, bias: Tensor | None, state: Tensor | None,
    cu_seqlens: Tensor | None, left: int, silu: bool, residual: bool, scale: float, implementation: str,
) -> Tensor:  # fmt: skip
    """Codes [B, T, R], basis [R, D, W] and static filters [Hs, W]; see :func:`dynaconv.lowrank_conv`."""
    options = Options(left, silu, residual, scale)
    if _is_empty(x, cu_seqlens):
        return x.new_empty(x.shape)
    if _lacks_kernels(implementation):
        return convolve("lowrank_conv", (x, codes, basis, static, bias, state), cu_seqlens, options)
    dtype = compute_dtype(x, codes, basis, static, bias)
    return _family(implementation, "lowrank").forward(x, codes, basis, static, bias, state, cu_seqlens, options, dtype)


@torch.library.custom_op("dynaconv::lowrank_conv_backward", mutates_args=())
def lowrank_conv_backward(
    grad: Tensor, x: Tensor, codes: Tensor, basis: Tensor, static: Tensor | None, bias: Tensor | None,
    state: Tensor | None, cu_seqlens: Tensor | None, left: int, silu: bool, residual: bool, scale: float,
    implementation: str, of_inputs: bool, of_filters: bool, of_static: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, codes, basis, static filters, bias and state, as far as they are wanted."""
    wanted, tensors = (of_inputs, of_filters, of_filters, of_static), (x, codes, basis, static, bias, state)
    options = Options(left, silu, residual, scale)
    if _is_empty(x, cu_seqlens):
        return _zeros(wanted, *tensors)
    if _lacks_kernels(implementation):
        return _reference_gradients("lowrank_conv", wanted, grad, tensors, cu_seqlens, options)
    family = _family(implementation, "lowrank")
    dtype = compute_dtype(x, codes, basis, static, bias)
    inputs = (x, codes, basis, static, bias, state, cu_seqlens, options, dtype)
    dz, db = _sum_and_bias_gradients(partial(family.forward, *inputs), grad, bias, options, dtype)
    dx, dcodes, dbasis, dstate = family.backward(
        dz, grad, x, codes, basis, static, state, cu_seqlens, options, dtype, of_inputs, of_filters
    )
    dcodes, dbasis = dcodes.to(codes.dtype).contiguous(), dbasis.to(basis.dtype).contiguous()
    ds = _static_gradient(of_static, implementation, dz, grad, x, static, state, cu_seqlens, options, dtype)
    return dx, dcodes, dbasis, ds, db, _state_gradient(dstate, state, x)


def _static_gradient(
    wanted: bool, implementation: str, dz: Tensor, grad: Tensor, x: Tensor, static: Tensor | None, state: Tensor | None,
    cu_seqlens: Tensor | None, options: Options, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Gradient of static filters that are added to others."""
    if not wanted or static is None:
        return x.new_empty(0)
    family = _family(implementation, "static")
    return family.backward(dz, grad, x, static, state, cu_seqlens, options, dtype, False, True)[1]


def _zeros(wanted: tuple[bool, ...], *inputs: Tensor | None) -> Any:
    """Gradients where there is no token or no channel."""
    return tuple(gradient.zero_() for gradient in _empty_gradients(wanted, *inputs))


def _reference_gradients(
    name: str, wanted: tuple[bool, ...], grad: Tensor, tensors: tuple[Tensor | None, ...], cu_seqlens: Tensor | None,
    options: Options,
) -> Any:  # fmt: skip
    results = gradients(name, grad, tensors, cu_seqlens, options, _exist(wanted, tensors))
    return tuple(grad.new_empty(0) if result is None else result.contiguous() for result in results)


def _empty_gradients(wanted: tuple[bool, ...], *inputs: Tensor | None) -> Any:
    """A tensor like each of x, filters, ..., bias and state; an empty one where there is no gradient."""
    like: Any = inputs[0]
    exist = _exist(wanted, inputs)
    return tuple(
        like.new_empty(0) if t is None or not e else t.new_empty(t.shape) for t, e in zip(inputs, exist, strict=True)
    )


def _exist(wanted: tuple[bool, ...], inputs: tuple[Tensor | None, ...]) -> tuple[bool, ...]:
    """Which of x, filters, ..., bias and state have a gradient where they are given."""
    return (*wanted, *(True for _ in inputs[len(wanted) : -1]), wanted[0])


def _state_gradient(gradient: Tensor | None, state: Tensor | None, x: Tensor) -> Tensor:
    return x.new_empty(0) if gradient is None or state is None else gradient.to(state.dtype)


# In every signature x comes first, then `filters` tensors, bias, state, cu_seqlens and the options.
_OPERATORS = (
    ("static_conv", static_conv, static_conv_backward, 1),
    ("dynamic_conv", dynamic_conv, dynamic_conv_backward, 2),
    ("lowrank_conv", lowrank_conv, lowrank_conv_backward, 3),
)


def _register(name: str, forward: Any, backward: Any, filters: int) -> None:
    count = filters + 3

    def wanted(needed: Any) -> tuple[bool, ...]:
        """Codes and basis share a flag: one pass gives both gradients."""
        of_inputs = needed[0] or needed[count - 1]
        return (of_inputs, any(needed[1:3]), needed[3]) if filters == 3 else (of_inputs, *needed[1 : 1 + filters])

    def fake(grad: Tensor, *inputs: Any) -> Any:
        flags = inputs[count + 6 :]
        return _empty_gradients((*flags[:2], *flags[1:]) if filters == 3 else flags, *inputs[:count])

    def save(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs[: count + 1])
        ctx.options = inputs[count + 1 :]

    def first_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        results = backward(grad, *ctx.saved_tensors, *ctx.options, *wanted(ctx.needs_input_grad))
        needed = zip(results, ctx.needs_input_grad, strict=False)
        return *(r if need else None for r, need in needed), None, *(None for _ in ctx.options)

    def save_for_second(ctx: Any, inputs: tuple, output: Any) -> None:
        ctx.save_for_backward(*inputs[: count + 2])
        ctx.set_materialize_grads(False)
        ctx.options, ctx.rest = Options(*inputs[count + 2 : count + 6]), len(inputs) - count - 1
        ctx.exists = [t is not None and g.shape == t.shape for g, t in zip(output, inputs[1:], strict=False)]

    def second_gradients(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        grad, *inputs, cu_seqlens = ctx.saved_tensors
        known = [v if exists else None for v, exists in zip(upstream, ctx.exists, strict=True)]
        needed = ctx.needs_input_grad[: count + 1]
        results = gradients_of_gradients(name, grad, inputs, cu_seqlens, ctx.options, known, needed)
        return *results, *(None for _ in range(ctx.rest))

    forward.register_fake(lambda x, *_: x.new_empty(x.shape))
    backward.register_fake(fake)
    forward.register_autograd(first_gradients, setup_context=save)
    backward.register_autograd(second_gradients, setup_context=save_for_second)


for _operator in _OPERATORS:
    _register(*_operator)


@register_flop_formula(torch.ops.dynaconv.static_conv)
def _static_flops(x_shape: Any, filters_shape: Any, *_: Any, **__: Any) -> int:
    """A product and a sum for every tap."""
    return 2 * math.prod(x_shape) * filters_shape[-1]


@register_flop_formula(torch.ops.dynaconv.dynamic_conv)
def _dynamic_flops(x_shape: Any, filters_shape: Any, static_shape: Any = None, *_: Any, **__: Any) -> int:
    """A product and a sum for every tap; one more sum where static filters are added."""
    return (2 if static_shape is None else 3) * math.prod(x_shape) * filters_shape[-1]


@register_flop_formula(torch.ops.dynaconv.lowrank_conv)
def _lowrank_flops(
    x_shape: Any, codes_shape: Any, basis_shape: Any, static_shape: Any = None, *_: Any, **__: Any
) -> int:
    """The filters, a product of codes and basis, and the convolution with them."""
    R, D, W = basis_shape
    return (2 * R + (2 if static_shape is None else 3)) * x_shape[0] * x_shape[1] * D * W


@register_flop_formula(torch.ops.dynaconv.static_conv_backward)
def _static_backward_flops(grad_shape: Any, x_shape: Any, filters_shape: Any, *_: Any, **__: Any) -> int:
    """As much as the operator for the gradient of x, and again for that of the filters."""
    return 2 * _static_flops(x_shape, filters_shape)


@register_flop_formula(torch.ops.dynaconv.dynamic_conv_backward)
def _dynamic_backward_flops(
    grad_shape: Any, x_shape: Any, filters_shape: Any, static_shape: Any = None, *_: Any, **__: Any
) -> int:
    """As much as the operator for the gradient of x, and again for that of the filters."""
    return 2 * _dynamic_flops(x_shape, filters_shape, static_shape)


@register_flop_formula(torch.ops.dynaconv.lowrank_conv_backward)
def _lowrank_backward_flops(
    grad_shape: Any, x_shape: Any, codes_shape: Any, basis_shape: Any, static_shape: Any = None, *_: Any, **__: Any
) -> int:
    """The filters once more and the gradient of x; then a product of matrices each for codes and basis."""
    R, _, W = basis_shape
    return _lowrank_flops(x_shape, codes_shape, basis_shape, static_shape) + (4 * R + 2) * math.prod(x_shape) * W


def _tell_running_counters() -> None:
    """A FlopCounterMode copies the formulas when it is made, which may be before the first use of an operator."""
    for mode in _get_current_dispatch_mode_stack():
        counter = getattr(mode, "counter", None)
        if isinstance(counter, FlopCounterMode):
            counter.flop_registry = flop_registry | counter.flop_registry


_tell_running_counters()
