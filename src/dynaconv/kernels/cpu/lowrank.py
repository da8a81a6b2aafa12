"""Depthwise convolution whose filters are codes [B, T, R] times a basis [R, D, W], on the CPU.

The filters of four tokens and a block of channels exist at a time, in the L1 cache: they are sums over the ranks, four
at a time, so that sixteen products share eight loads. The basis is laid out by blocks of channels, [blocks, R, W, n].
"""

import numpy as np
import torch
import torch.nn.functional as F
from numba import prange
from torch import Tensor

from ..options import Options
from .rows import add_scaled, finish, row, scaled
from .runtime import flat, function, groups, inline, kernel, launch, optional, rows, tasks


def forward(
    x: Tensor, codes: Tensor, basis: Tensor, taps: Tensor | None, bias: Tensor | None, state: Tensor | None,
    cu_seqlens: Tensor | None, options: Options, dtype: torch.dtype, grad: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The operator, with taps [W, D] added to the filters; with `grad` the gradient of the sum behind SiLU instead."""
    codes, basis, inputs, (B, T, D) = codes.detach().to(dtype), basis.detach().to(dtype), rows(x, dtype), x.shape
    z, blocks, static = _padded_codes(codes), _blocked_basis(basis), _blocked_taps(taps, basis)
    out = inputs.new_empty(B, T, D)
    launch(
        _forward, flat(out), flat(inputs), inputs.stride()[:2], flat(z), flat(blocks), flat(static),
        optional(state, basis),
        optional(bias, basis), optional(grad, basis), tasks(B, T, cu_seqlens), (T, D, *blocks.shape[1:]), *options,
    )  # fmt: skip
    return out.to(x.dtype) if grad is None else out


def backward(
    dz: Tensor, grad: Tensor, x: Tensor, codes: Tensor, basis: Tensor, taps: Tensor | None, state: Tensor | None,
    cu_seqlens: Tensor | None, options: Options, dtype: torch.dtype, of_inputs: bool, of_filters: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Gradients of x, codes, basis and the state; those that are not wanted are empty."""
    (B, T, D), (R, _, W) = x.shape, basis.shape
    codes, basis = codes.detach().to(dtype), basis.detach().to(dtype)
    g, inputs, residual = rows(dz, dtype), rows(x, dtype), rows(grad, dtype)
    z, blocks, static = _padded_codes(codes), _blocked_basis(basis), _blocked_taps(taps, basis)
    table, sizes = tasks(B, T, cu_seqlens), (T, D, *blocks.shape[1:])
    dx = inputs.new_empty((B, T, D) if of_inputs else (0,))
    dcodes = inputs.new_empty(z.shape if of_filters else (0,))
    dstate = inputs.new_zeros(state.shape) if of_inputs and state is not None else None
    past = optional(state, basis)
    launch(
        _backward, flat(dx), flat(dcodes), optional(dstate, basis), flat(g), g.stride()[:2], flat(residual),
        residual.stride()[:2], flat(inputs), inputs.stride()[:2], flat(z), flat(blocks), flat(static), past, table,
        sizes,
        options.left, options.residual, options.scale,
    )  # fmt: skip
    if not of_filters:
        return dx.to(x.dtype), dcodes, inputs.new_empty(0), dstate
    edges = groups(table, limit=B * T // max(1, 20 * R * W))
    partial = inputs.new_zeros(len(edges) - 1, *blocks.shape)
    launch(
        _basis_grad, flat(partial), flat(g), g.stride()[:2], flat(inputs), inputs.stride()[:2], flat(z), past, table,
        edges, sizes, options.left,
    )  # fmt: skip
    dbasis = (partial.sum(0) * options.scale)[:, :R].permute(1, 0, 3, 2).flatten(1, 2)[:, :D]
    return dx.to(x.dtype), dcodes[..., :R], dbasis, dstate


def _padded_codes(codes: Tensor) -> Tensor:
    """[B, T, R] with R rounded up to a multiple of four."""
    return F.pad(codes, (0, -codes.shape[-1] % 4)).contiguous()


def _blocked_basis(basis: Tensor, rank: int | None = None) -> Tensor:
    """[R, D, W] to [blocks, R, W, n], zeros where R is rounded up to a multiple of four and D to one of n.

    `rank` takes the n of a basis of another rank.
    """
    _, D, W = basis.shape
    R = basis.shape[0] if rank is None else rank
    n = max(16, min(128, 8192 // max(1, R * W) // 16 * 16))
    padded = F.pad(basis, (0, 0, 0, -D % n, 0, -basis.shape[0] % 4))
    return padded.unflatten(1, (-1, n)).permute(1, 0, 3, 2).contiguous(memory_format=torch.contiguous_format)


def _blocked_taps(taps: Tensor | None, basis: Tensor) -> Tensor:
    """[W, D] to [blocks, W, n] like the basis, zeros without taps."""
    static = basis.new_zeros(1, *basis.shape[1:]) if taps is None else taps.T[None]
    return _blocked_basis(static, basis.shape[0])[:, 0].contiguous()


@function
def _add_outer(y, o, o_step, z, k, k_step, u, i, i_step, R, L):
    """y[o + a o_step : ... + L] += sum_{r < R} z[k + a k_step + r] * u[i + r i_step : ... + L] for a in 0..3."""
    y0, y1, y2, y3 = row(y, o, L), row(y, o + o_step, L), row(y, o + 2 * o_step, L), row(y, o + 3 * o_step, L)
    for r in range(0, R, 4):
        p, q = k + r, i + r * i_step
        a0, a1, a2, a3 = z[p], z[p + 1], z[p + 2], z[p + 3]
        p += k_step
        b0, b1, b2, b3 = z[p], z[p + 1], z[p + 2], z[p + 3]
        p += k_step
        c0, c1, c2, c3 = z[p], z[p + 1], z[p + 2], z[p + 3]
        p += k_step
        d0, d1, d2, d3 = z[p], z[p + 1], z[p + 2], z[p + 3]
        u0, u1, u2, u3 = row(u, q, L), row(u, q + i_step, L), row(u, q + 2 * i_step, L), row(u, q + 3 * i_step, L)
        for c in range(L):
            y0[c] += a0 * u0[c] + a1 * u1[c] + a2 * u2[c] + a3 * u3[c]
            y1[c] += b0 * u0[c] + b1 * u1[c] + b2 * u2[c] + b3 * u3[c]
            y2[c] += c0 * u0[c] + c1 * u1[c] + c2 * u2[c] + c3 * u3[c]
            y3[c] += d0 * u0[c] + d1 * u1[c] + d2 * u2[c] + d3 * u3[c]


@inline
def _four_codes(quad, z, b, start, length, t, last, R):
    """quad[a, :] = codes of token t + a; zeros from `last` on, so that four tokens can always be taken together."""
    for a in range(4):
        i = (b * length + start + t + a) * R
        for r in range(R):
            quad[a * R + r] = z[i + r] if t + a < last else 0


@function
def _products(p, g, j, m, x, base, step, state, n, d, D, t, T, left, W, width):
    """p[w * width + c] = g[j + c] * window row w of token t, for c < m; zero where the window has no row."""
    for w in range(W):
        s = t + w - left
        q, y = row(p, w * width, m), row(g, j, m)
        if 0 <= s < T:
            v = row(x, base + s * step + d, m)
            for c in range(m):
                q[c] = y[c] * v[c]
        elif s < 0 and state.size > 0:
            v = row(state, (n * (W - 1) + W - 1 + s) * D + d, m)
            for c in range(m):
                q[c] = y[c] * v[c]
        else:
            q[:] = 0


@kernel
def _forward(out, x, x_strides, z, u, taps, state, bias, grad, tasks, sizes, left, silu, residual, scale):
    length, D, R, W, width = sizes
    L = W * width
    for task in prange(len(tasks)):
        n, b, start, T = tasks[task, 0], tasks[task, 1], tasks[task, 2], tasks[task, 3]
        last = tasks[task, 5]
        base, step = b * x_strides[0] + start * x_strides[1], x_strides[1]
        f, quad = np.empty(4 * L, x.dtype), np.empty(4 * R, x.dtype)
        for d in range(0, D, width):
            m = min(width, D - d)
            for t in range(tasks[task, 4], last, 4):
                _four_codes(quad, z, b, start, length, t, last, R)
                for a in range(4):
                    f[a * L : (a + 1) * L] = row(taps, d // width * L, L)
                _add_outer(f, 0, L, quad, 0, R, u, d // width * R * L, L, R, L)
                for a in range(min(4, last - t)):
                    o = (b * length + start + t + a) * D + d
                    y = row(out, o, m)
                    y[:] = 0
                    for w in range(W):
                        s = t + a + w - left
                        filters = row(f, a * L + w * width, m)
                        if 0 <= s < T:
                            v = row(x, base + s * step + d, m)
                            for c in range(m):
                                y[c] += filters[c] * v[c]
                        elif s < 0 and state.size > 0:
                            v = row(state, (n * (W - 1) + W - 1 + s) * D + d, m)
                            for c in range(m):
                                y[c] += filters[c] * v[c]
                    finish(y, bias, d, x, base + (t + a) * step + d, grad, o, silu, residual, scale)


@kernel
def _backward(
    dx, dcodes, dstate, g, g_strides, dy, dy_strides, x, x_strides, z, u, taps, state, tasks, sizes, left, residual,
    scale,
):  # fmt: skip
    length, D, R, W, width = sizes
    L = W * width
    zero = g.dtype.type(0)
    for task in prange(len(tasks)):
        n, b, start, T = tasks[task, 0], tasks[task, 1], tasks[task, 2], tasks[task, 3]
        t0, t1 = tasks[task, 4], tasks[task, 5]
        past = W - 1 if t0 == 0 and state.size > 0 else 0
        base, step = b * x_strides[0] + start * x_strides[1], x_strides[1]
        g_base, g_step = b * g_strides[0] + start * g_strides[1], g_strides[1]
        f, quad, p = np.empty(4 * L, x.dtype), np.empty(4 * R, x.dtype), np.zeros(4 * L, x.dtype)
        sums_x, sums = np.empty((past + t1 - t0) * width, x.dtype), np.zeros((t1 - t0) * R, x.dtype)
        for d in range(0, D, width):
            m = min(width, D - d)
            sums_x[:] = 0
            p[:] = 0
            # Rows of dx get from every token whose window holds them, so from some behind the block too.
            end = min(T, t1 + left) if dx.size > 0 else 0
            for t in range(max(0, t0 + left - W + 1), end, 4):
                _four_codes(quad, z, b, start, length, t, end, R)
                for a in range(4):
                    f[a * L : (a + 1) * L] = row(taps, d // width * L, L)
                _add_outer(f, 0, L, quad, 0, R, u, d // width * R * L, L, R, L)
                for a in range(min(4, end - t)):
                    j = g_base + (t + a) * g_step + d
                    y = row(g, j, m)
                    for w in range(W):
                        s = t + a + w - left - t0 + past
                        if 0 <= s < past + t1 - t0:
                            to, filters = row(sums_x, s * width, m), row(f, a * L + w * width, m)
                            for c in range(m):
                                to[c] += filters[c] * y[c]
            for t in range(t0, t1 if dcodes.size > 0 else t0, 4):
                count = min(4, t1 - t)
                for a in range(count):
                    j = g_base + (t + a) * g_step + d
                    _products(p[a * L :], g, j, m, x, base, step, state, n, d, D, t + a, T, left, W, width)
                p0, p1, p2, p3 = row(p, 0, L), row(p, L, L), row(p, 2 * L, L), row(p, 3 * L, L)
                for r in range(R):
                    i = (d // width * R + r) * L
                    v = row(u, i, L)
                    s0, s1, s2, s3 = zero, zero, zero, zero
                    for c in range(L):
                        s0 += p0[c] * v[c]
                        s1 += p1[c] * v[c]
                        s2 += p2[c] * v[c]
                        s3 += p3[c] * v[c]
                    o = (t - t0) * R + r
                    sums[o] += s0
                    if count > 1:
                        sums[o + R] += s1
                    if count > 2:
                        sums[o + 2 * R] += s2
                    if count > 3:
                        sums[o + 3 * R] += s3
            for s in range(-past, t1 - t0 if dx.size > 0 else -past):
                if s < 0:
                    y = row(dstate, (n * past + past + s) * D + d, m)
                else:
                    y = row(dx, (b * length + start + t0 + s) * D + d, m)
                y[:] = row(sums_x, (past + s) * width, m)
                if residual and s >= 0:
                    add_scaled(y, dy, b * dy_strides[0] + (start + t0 + s) * dy_strides[1] + d, scale)
                elif scale != 1:
                    scaled(y, scale)
        o = (b * length + start + t0) * R
        for r in range((t1 - t0) * R if dcodes.size > 0 else 0):
            dcodes[o + r] = sums[r] * scale


@kernel
def _basis_grad(partial, g, g_strides, x, x_strides, z, state, tasks, edges, sizes, left):
    """partial[group, block, r, w, c] = sum_t z[t, r] * g[t, c] * x[t + w - left, c]."""
    length, D, R, W, width = sizes
    L, blocks = W * width, (D + width - 1) // width
    for item in prange((len(edges) - 1) * blocks):
        group, d = item // blocks, item % blocks * width
        m = min(width, D - d)
        p, quad, columns = np.zeros(4 * L, x.dtype), np.empty(4 * R, x.dtype), np.empty(4 * R, x.dtype)
        for task in range(edges[group], edges[group + 1]):
            n, b, start, T = tasks[task, 0], tasks[task, 1], tasks[task, 2], tasks[task, 3]
            t1 = tasks[task, 5]
            base, step = b * x_strides[0] + start * x_strides[1], x_strides[1]
            for t in range(tasks[task, 4], t1, 4):
                _four_codes(quad, z, b, start, length, t, t1, R)
                for a in range(4):
                    for r in range(R):
                        columns[r * 4 + a] = quad[a * R + r]
                p[:] = 0
                for a in range(min(4, t1 - t)):
                    j = b * g_strides[0] + (start + t + a) * g_strides[1] + d
                    _products(p[a * L :], g, j, m, x, base, step, state, n, d, D, t + a, T, left, W, width)
                for r in range(0, R, 4):
                    o = ((group * blocks + d // width) * R + r) * L
                    _add_outer(partial, o, L, columns, r * 4, 4, p, 0, L, 4, L)
