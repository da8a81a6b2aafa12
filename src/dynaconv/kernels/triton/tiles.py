"""What every Triton kernel does with a tile: where its tokens are, rows of inputs, and the fused end of an operator.

Every load has a mask and a value for what is outside, and is followed by the cast to fp32. Offsets are int64.
Tokens s and channels d come as tensors that broadcast against each other, [BT, 1] and [1, BD] or with more dimensions.
"""

import triton
import triton.language as tl


@triton.jit
def locate(chunk, table, length, CHUNK: tl.constexpr):
    """Row of the batch, sequence, its first and last (exclusive) token, and the first token of a chunk."""
    if table is None:
        chunks = (length + CHUNK - 1) // CHUNK
        row = (chunk // chunks).to(tl.int64)
        sequence = row
        begin = row * 0
        end = begin + length
        first = (chunk % chunks).to(tl.int64) * CHUNK
    else:
        sequence = tl.load(table + chunk * 4)
        begin = tl.load(table + chunk * 4 + 1)
        end = tl.load(table + chunk * 4 + 2)
        first = tl.load(table + chunk * 4 + 3)
        row = begin * 0
    return row, sequence, begin, end, first


@triton.jit
def load(pointer, offsets, mask):
    """Values in fp32, 0 where the mask is false."""
    return tl.load(pointer + offsets, mask=mask, other=0).to(tl.float32)


@triton.jit
def load_token(tensor, strides, row, t, d, mask):
    """Channels d of the tokens t of a tensor [B, T, D]."""
    return load(tensor, row * strides[0] + t * strides[1] + d * strides[2], mask)


@triton.jit
def load_inputs(x, strides, past, row, sequence, begin, end, s, d, valid, D: tl.constexpr, W: tl.constexpr):
    """x[s, d] inside the sequence; before it past [N, W-1, D] where there is one; 0 elsewhere."""
    inputs = load_token(x, strides, row, s, d, (s >= begin) & (s < end) & valid)
    if past is not None:
        slot = s - begin + W - 1
        inputs += load(past, (sequence * (W - 1) + slot) * D + d, (slot >= 0) & (slot < W - 1) & valid)
    return inputs


@triton.jit
def finish(total, bias, x, strides, grad, row, s, d, mask, length, D: tl.constexpr, SILU: tl.constexpr,
           RESIDUAL: tl.constexpr, scale):  # fmt: skip
    """scale * (activation(total + bias) + x); where there is a `grad` [B, T, D], grad * SiLU'(total + bias)."""
    if bias is not None:
        total += load(bias, d, d < D)
    if grad is not None:
        gate = tl.sigmoid(total)
        total = load(grad, (row * length + s) * D + d, mask) * gate * (1 + total * (1 - gate))
    else:
        if SILU:
            total *= tl.sigmoid(total)
        if RESIDUAL:
            total += load_token(x, strides, row, s, d, mask)
        total *= scale
    return total


@triton.jit
def store_gradient(dx, dpast, total, dy, dy_strides, row, sequence, begin, s, d, mask, length, D: tl.constexpr,
                   W: tl.constexpr, RESIDUAL: tl.constexpr, scale):  # fmt: skip
    """scale * (total + dy) into dx [B, T, D], where s >= begin; rows before go, without dy, into dpast [N, W-1, D]."""
    inside = mask & (s >= begin)
    if RESIDUAL:
        total += load_token(dy, dy_strides, row, s, d, inside)
    total *= scale
    tl.store(dx + (row * length + s) * D + d, total, mask=inside)
    if dpast is not None:
        slot = s - begin + W - 1
        tl.store(dpast + (sequence * (W - 1) + slot) * D + d, total, mask=mask & (s < begin) & (slot >= 0))
