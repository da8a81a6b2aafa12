"""What every kernel does with rows of channels: weighted sums over taps, and the fused end of an operator.

A window of W rows around token t starts `left` rows before it. Rows before the first token come from the state, if
there is one; they and the rows behind the last token are zero otherwise, and left out of the sum.
"""

import math
from typing import Any

from llvmlite import ir
from numba import extending, types

from .runtime import function, inline


def channels_at_a_time(width: int) -> int:
    """How many channels a kernel takes at a time, so that `width` rows of x and of filters stay in the L1 cache."""
    return max(64, min(1024, 4096 // width // 64 * 64))


_intrinsic: Any = extending.intrinsic


@_intrinsic
def _bits(typing_context, value):
    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.IntType(64))

    return types.int64(types.float64), generate


@_intrinsic
def _float(typing_context, bits):
    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.DoubleType())

    return types.float64(types.int64), generate


@inline
def sigmoid(value):
    """1 / (1 + exp(-value)) in fp64, of operations that LLVM vectorises: exp is a Taylor series around k ln 2."""
    v = min(max(-value, -700.0), 700.0)
    k = math.floor(v * 1.4426950408889634 + 0.5)
    r = v - k * 0.6931471805599453
    p = 1 / 479001600
    for n in (39916800, 3628800, 362880, 40320, 5040, 720, 120, 24, 6, 2, 1, 1):
        p = p * r + 1 / n
    # 2 ** k: 2 ** 52 + 2 ** 51 moves the integer k + 1023 into the low bits, the shift moves it into the exponent.
    # Below the range the factor is 0, as in fp64: -inf * 0 is NaN, as PyTorch has it.
    return (1.0 if v < 700.0 else 0.0) / (1 + p * _float(_bits(k + (6755399441055744.0 + 1023.0)) << 52))


@inline
def row(a, i, n):
    """a[i : i + n], with an end: without one LLVM does not see that a loop stays inside."""
    return a[i : i + n]


@function
def add_products(y, fresh, a, i, i_step, x, j, j_step, count):
    """y[c] += sum_{r < count} a[i + r i_step + c] * x[j + r j_step + c], four rows at a time; y[c] = ... if `fresh`."""
    n = len(y)
    if fresh and count < 4:
        y[:] = 0
    while count >= 4:
        a0, a1, a2, a3 = row(a, i, n), row(a, i + i_step, n), row(a, i + 2 * i_step, n), row(a, i + 3 * i_step, n)
        x0, x1, x2, x3 = row(x, j, n), row(x, j + j_step, n), row(x, j + 2 * j_step, n), row(x, j + 3 * j_step, n)
        if fresh:
            for c in range(n):
                y[c] = (a0[c] * x0[c] + a1[c] * x1[c]) + (a2[c] * x2[c] + a3[c] * x3[c])
            fresh = False
        else:
            for c in range(n):
                y[c] += (a0[c] * x0[c] + a1[c] * x1[c]) + (a2[c] * x2[c] + a3[c] * x3[c])
        i += 4 * i_step
        j += 4 * j_step
        count -= 4
    while count > 0:
        a0, x0 = row(a, i, n), row(x, j, n)
        for c in range(n):
            y[c] += a0[c] * x0[c]
        i += i_step
        j += j_step
        count -= 1


@function
def add_static_window(y, fresh, taps, state, n, x, base, step, d, t, T, D, W, left):
    """y[c] += sum_w taps[w, d + c] * window row w of token t."""
    skip = max(0, left - t)
    i = base + (t + skip - left) * step + d
    add_products(y, fresh, taps, skip * D + d, D, x, i, step, min(W, T + left - t) - skip)
    if state.size > 0:
        for w in range(skip):
            a, v = row(taps, w * D + d, len(y)), row(state, (n * (W - 1) + t + w) * D + d, len(y))
            for c in range(len(y)):
                y[c] += a[c] * v[c]


@function
def add_static_transpose(y, fresh, taps, g, base, step, d, s, T, D, W, left):
    """y[c] += sum_w taps[w, d + c] * g[s + left - w], the gradient that reaches row s; s < 0 is the state."""
    first, last = max(0, s + left - W + 1), min(T, s + left + 1)
    add_products(y, fresh, taps, (s + left - first) * D + d, -D, g, base + first * step + d, step, last - first)


@function
def finish(y, bias, d, x, i, grad, j, silu, residual, scale):
    """y = scale * (activation(y + bias[d + c]) + x[i + c]), or the gradient grad[j + c] * SiLU'(y + bias)."""
    m = len(y)
    if bias.size > 0:
        b = row(bias, d, m)
        for c in range(m):
            y[c] += b[c]
    if grad.size > 0:
        g = row(grad, j, m)
        for c in range(m):
            s = sigmoid(y[c])
            y[c] = g[c] * s * (1 + y[c] * (1 - s))
    else:
        if silu:
            for c in range(m):
                y[c] *= sigmoid(y[c])
        if residual:
            add_scaled(y, x, i, scale)
        elif scale != 1:
            scaled(y, scale)


@inline
def scaled(y, scale):
    """y *= scale."""
    factor = y.dtype.type(scale)
    for c in range(len(y)):
        y[c] *= factor


@inline
def add_scaled(y, x, i, scale):
    """y = (y + x[i + c]) * scale."""
    v, factor = row(x, i, len(y)), y.dtype.type(scale)
    for c in range(len(y)):
        y[c] = (y[c] + v[c]) * factor
