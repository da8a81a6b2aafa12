"""Depthwise convolution whose filters are codes [B, T, R] times a basis [R, D, W], in Triton.

The filters of a tile are a matrix product and exist on chip alone. Products of codes and basis in fp16 or bf16 run on
tensor cores and are exact there; products of fp32 operands use fp32 arithmetic ("ieee").

The backward pass reads x and the gradient once. A program keeps the sum of the basis gradient over its tokens; the code
gradients of every block of channels and the basis gradients of every program are added up then, in a fixed order.
Where the blocks are many (a large rank, a wide filter) their code gradients would outgrow x: a second pass yields them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..options import Options
from .runtime import INTERPRETED, ceil_div, chunks, contiguous, kernel, launch, launch_options, power_of_two
from .taps import expand
from .tiles import finish, load, load_inputs, load_token, locate, store_gradient

TOKENS, CHANNELS = 64, 64  # of a tile
SUMS = 8192  # elements of the basis gradient that a program keeps: 32 registers of 256 threads
GROUPS = 2  # at most so many blocks of channels in a program of the backward pass
PROGRAMS = 256  # of the backward pass, where there are so many tokens: twice the multiprocessors of an H100
OPERANDS = 16384  # bytes of a matrix operand, at most: two of them have to fit on chip


def forward(
    x: Tensor, codes: Tensor, basis: Tensor, static: Tensor | None, bias: Tensor | None, past: Tensor | None,
    cu_seqlens: Tensor | None, options: Options, dtype: torch.dtype, grad: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The operator, static [Hs, W] added to the filters; with `grad` the gradient of the sum behind SiLU."""
    D, (R, _, W), taps = x.shape[2], basis.shape, expand(static, x.shape[2], dtype)
    out = x.new_empty(x.shape, dtype=x.dtype if grad is None else dtype)
    codes, packed = _operands(codes, basis)
    tokens, channels = _tile(codes)
    parts, block = chunks(x, cu_seqlens, tokens), power_of_two(D, 16, channels)
    launch(
        _forward, parts.count * ceil_div(D, block), x, out, x, x.stride(), codes, codes.stride(), packed, taps,
        contiguous(past), contiguous(bias), contiguous(grad), parts.table, parts.length, options.left,
        options.scale, D, R, power_of_two(R, 16), W, options.silu, options.residual, tokens, block,
        **launch_options(tokens * block),
    )  # fmt: skip
    return out


def backward(
    dz: Tensor, grad: Tensor, x: Tensor, codes: Tensor, basis: Tensor, static: Tensor | None, past: Tensor | None,
    cu_seqlens: Tensor | None, options: Options, dtype: torch.dtype, of_inputs: bool, of_filters: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Gradients of x, codes, basis and `past`."""
    (B, T, D), (R, _, W), taps = x.shape, basis.shape, expand(static, x.shape[2], dtype)
    ranks = power_of_two(R, 16)
    # Codes and basis in fp16 or bf16 are exact in tf32; products of x and the gradient keep 11 bits.
    exact = torch.float32 in (codes.dtype, basis.dtype) or codes.dtype != basis.dtype or torch.version.hip is not None
    codes, packed = _operands(codes, basis)
    tokens, channels = _tile(codes)
    kept = max(16, SUMS // (ranks * W))
    block = min(power_of_two(D, 16, channels), 1 << kept.bit_length() - 1)
    groups = max(1, min(GROUPS, kept // block, ceil_div(D, block)))
    blocks = ceil_div(D, block * groups)
    parts = chunks(x, cu_seqlens, tokens)
    each = ceil_div(parts.count, max(1, PROGRAMS // blocks))
    programs = ceil_div(parts.count, each)
    one_pass = 16 * blocks * R <= D * x.element_size()
    dx = x.new_empty(x.shape) if of_inputs else None
    dpast = past.new_zeros(past.shape) if of_inputs and past is not None else None
    dcodes = x.new_empty(blocks if one_pass else 1, B, T, R, dtype=dtype) if of_filters else None
    dbasis = x.new_empty(programs, R, W, D, dtype=dtype) if of_filters else None
    shared = (dz, dz.stride(), x, x.stride(), packed, contiguous(past), parts.table, parts.length, options.left)
    precision, launched = "ieee" if exact else "tf32", launch_options(8192)
    launch(
        _backward, programs * blocks, x, dx, dpast, dcodes if one_pass else None, dbasis, *shared, grad, grad.stride(),
        codes, codes.stride(), taps, B, parts.count, each, options.scale, D, R, ranks, W, options.residual, tokens,
        power_of_two(W - 1, 16), block, groups, precision, **launched,
    )  # fmt: skip
    if dcodes is not None and not one_pass:
        block = power_of_two(D, 16, channels)
        launch(_code_gradient, parts.count, x, dcodes, *shared, D, R, ranks, W, tokens, block, precision, **launched)
    dx = x.new_empty(0) if dx is None else dx
    if dcodes is None or dbasis is None:
        return dx, x.new_empty(0), x.new_empty(0), dpast
    return dx, dcodes.sum(0) * options.scale, dbasis.sum(0).permute(0, 2, 1) * options.scale, dpast


def _tile(codes: Tensor) -> tuple[int, int]:
    """Tokens and channels of a tile: fewer for a rank whose operands would not fit on chip."""
    size = power_of_two(OPERANDS // (power_of_two(codes.shape[2], 16) * codes.element_size()), 16)
    return min(TOKENS, size), min(CHANNELS, size)


def _operands(codes: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Codes, and the basis as [W, R, D], in one dtype that tensor cores take."""
    # The interpreter multiplies bf16 matrices by their bit patterns.
    dtype = torch.float32 if INTERPRETED else torch.promote_types(codes.dtype, basis.dtype)
    return codes.to(dtype), basis.to(dtype).permute(2, 0, 1).contiguous()


@triton.jit
def _codes(codes, strides, row, t, inside, r, R: tl.constexpr):
    """Codes [BT, RP] of tokens t [BT, 1], zeros where they are not inside."""
    offsets = row * strides[0] + t * strides[1] + r.to(tl.int64) * strides[2]
    return tl.load(codes + offsets, mask=inside & (r < R), other=0)


@triton.jit
def _basis(basis, w, d, D: tl.constexpr, R: tl.constexpr, RP: tl.constexpr):
    """Tap w of the basis, [RP, BD], of channels d [1, BD]."""
    r = tl.arange(0, RP)[:, None]
    return tl.load(basis + (w * R + r) * D + d, mask=(r < R) & (d < D), other=0)


@triton.jit
def _operand(products, PRECISION: tl.constexpr):
    """Products as an operand of a matrix product: rounded to the nearest tf32, which tensor cores would cut off."""
    if PRECISION == "tf32":
        nearest = ((products.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
        products = tl.where(tl.abs(products) < float("inf"), nearest, products)
    return products


@kernel
def _forward(
    out, x, x_strides, codes, code_strides, basis, taps, past, bias, grad, table, length, left, scale, D: tl.constexpr,
    R: tl.constexpr, RP: tl.constexpr, W: tl.constexpr, SILU: tl.constexpr, RESIDUAL: tl.constexpr, BT: tl.constexpr,
    BD: tl.constexpr,
):  # fmt: skip
    blocks: tl.constexpr = (D + BD - 1) // BD
    row, sequence, begin, end, first = locate(tl.program_id(0) // blocks, table, length, BT)
    s = first + tl.arange(0, BT).to(tl.int64)[:, None]
    d = (tl.program_id(0) % blocks).to(tl.int64) * BD + tl.arange(0, BD).to(tl.int64)[None, :]
    code_tile = _codes(codes, code_strides, row, s, s < end, tl.arange(0, RP)[None, :], R)
    total = tl.zeros([BT, BD], tl.float32)
    for w in tl.static_range(W):
        filters = tl.dot(code_tile, _basis(basis, w, d, D, R, RP), input_precision="ieee")
        if taps is not None:
            filters += load(taps, w * D + d, d < D)
        total += filters * load_inputs(x, x_strides, past, row, sequence, begin, end, s + w - left, d, d < D, D, W)
    mask = (s < end) & (d < D)
    total = finish(total, bias, x, x_strides, grad, row, s, d, mask, length, D, SILU, RESIDUAL, scale)
    tl.store(out + (row * length + s) * D + d, total, mask=mask)


@triton.jit
def _input_gradient(
    dz, dz_strides, codes, code_strides, basis, taps, row, begin, end, s, d, left, D: tl.constexpr, R: tl.constexpr,
    RP: tl.constexpr, W: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """sum_w (sum_r codes[t, r] basis[r, d, w]) * dz[t, d] with t = s + left - w."""
    total = tl.zeros([BT, BD], tl.float32)
    for w in tl.static_range(W):
        t = s + left - w
        inside = (t >= begin) & (t < end)
        code_tile = _codes(codes, code_strides, row, t, inside, tl.arange(0, RP)[None, :], R)
        filters = tl.dot(code_tile, _basis(basis, w, d, D, R, RP), input_precision="ieee")
        if taps is not None:
            filters += load(taps, w * D + d, d < D)
        total += filters * load_token(dz, dz_strides, row, t, d, inside & (d < D))
    return total


@kernel
def _backward(
    dx, dpast, dcodes, dbasis, dz, dz_strides, x, x_strides, basis, past, table, length, left, dy, dy_strides, codes,
    code_strides, taps, batch, count, each, scale, D: tl.constexpr, R: tl.constexpr, RP: tl.constexpr, W: tl.constexpr,
    RESIDUAL: tl.constexpr, BT: tl.constexpr, BP: tl.constexpr, BD: tl.constexpr, GROUPS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    blocks: tl.constexpr = (D + BD * GROUPS - 1) // (BD * GROUPS)
    program = tl.program_id(0) // blocks
    block = (tl.program_id(0) % blocks).to(tl.int64)
    d_0 = block * (BD * GROUPS) + tl.arange(0, BD).to(tl.int64)[None, :]
    r = tl.arange(0, RP)[None, :]
    sums = ()  # gradients of tap w of the basis in block j of the channels, [RP, BD], at j * W + w
    for _ in tl.static_range(GROUPS * W):
        sums = sums + (tl.zeros([RP, BD], tl.float32),)
    for chunk in range(program * each, tl.minimum(program * each + each, count)):
        row, sequence, begin, end, first = locate(chunk, table, length, BT)
        s = first + tl.arange(0, BT).to(tl.int64)[:, None]
        code_tile = _codes(codes, code_strides, row, s, s < end, r, R).to(tl.float32)
        code_sums = tl.zeros([BT, RP], tl.float32)
        added = ()
        for j in tl.static_range(GROUPS):
            d = d_0 + j * BD
            mask = (s < end) & (d < D)
            if dpast is not None:
                if first == begin:
                    p = begin - BP + tl.arange(0, BP).to(tl.int64)[:, None]
                    earlier = _input_gradient(
                        dz, dz_strides, codes, code_strides, basis, taps, row, begin, end, p, d, left, D, R, RP, W, BP,
                        BD,
                    )  # fmt: skip
                    store_gradient(
                        dx, dpast, earlier, dy, dy_strides, row, sequence, begin, p, d, d < D, length, D, W, False,
                        scale,
                    )  # fmt: skip
            if dx is not None:
                total = _input_gradient(
                    dz, dz_strides, codes, code_strides, basis, taps, row, begin, end, s, d, left, D, R, RP, W, BT, BD
                )
                store_gradient(
                    dx, None, total, dy, dy_strides, row, sequence, begin, s, d, mask, length, D, W, RESIDUAL, scale
                )
            if dbasis is not None:
                gradient = load_token(dz, dz_strides, row, s, d, mask)
                for w in tl.static_range(W):
                    inputs = load_inputs(x, x_strides, past, row, sequence, begin, end, s + w - left, d, mask, D, W)
                    products = _operand(gradient * inputs, PRECISION)
                    if dcodes is not None:
                        basis_tile = _basis(basis, w, d, D, R, RP).to(tl.float32)
                        code_sums = tl.dot(products, tl.trans(basis_tile), code_sums, input_precision=PRECISION)
                    kept = tl.dot(tl.trans(code_tile), products, sums[j * W + w], input_precision=PRECISION)
                    added = added + (kept,)
        if dbasis is not None:
            sums = added
        if dcodes is not None:
            offsets = (block * batch * length + row * length + s) * R + r
            tl.store(dcodes + offsets, code_sums, mask=(s < end) & (r < R))
    if dbasis is not None:
        r_row = tl.arange(0, RP)[:, None]
        for j in tl.static_range(GROUPS):
            d = d_0 + j * BD
            for w in tl.static_range(W):
                offsets = ((program.to(tl.int64) * R + r_row) * W + w) * D + d
                tl.store(dbasis + offsets, sums[j * W + w], mask=(r_row < R) & (d < D))


@kernel
def _code_gradient(
    dcodes, dz, dz_strides, x, x_strides, basis, past, table, length, left, D: tl.constexpr, R: tl.constexpr,
    RP: tl.constexpr, W: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dcodes[t, r] = sum_{w, d} dz[t, d] * x[t + w - left, d] * basis[r, d, w], all channels in one program."""
    row, sequence, begin, end, first = locate(tl.program_id(0), table, length, BT)
    s = first + tl.arange(0, BT).to(tl.int64)[:, None]
    r = tl.arange(0, RP)[None, :]
    code_sums = tl.zeros([BT, RP], tl.float32)
    for d_0 in range(0, D, BD):
        d = d_0 + tl.arange(0, BD).to(tl.int64)[None, :]
        mask = (s < end) & (d < D)
        gradient = load_token(dz, dz_strides, row, s, d, mask)
        for w in tl.static_range(W):
            inputs = load_inputs(x, x_strides, past, row, sequence, begin, end, s + w - left, d, mask, D, W)
            products = _operand(gradient * inputs, PRECISION)
            basis_tile = _basis(basis, w, d, D, R, RP).to(tl.float32)
            code_sums = tl.dot(products, tl.trans(basis_tile), code_sums, input_precision=PRECISION)
    tl.store(dcodes + (row * length + s) * R + r, code_sums, mask=(s < end) & (r < R))
