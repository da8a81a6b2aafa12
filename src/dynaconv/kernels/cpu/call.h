// What the kernels are given: the records of a call, its sequences cut into blocks of tokens, the pool of threads.
//
// Dims: B batch, T tokens, D channels, H filters (C = D / H consecutive channels share one), W taps, N sequences.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "vector.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace dynaconv {

using i64 = int64_t;

// Where rows and tokens of a tensor [rows, tokens, channels] are; its channels lie one after the other.
struct Strides {
  i64 row, token;
};

// Filters, codes or a basis: numbers of any dtype, [..., heads, taps] with any strides.
struct Axes {
  i64 dtype, row, token, head, tap, heads;
};

// What all calls with tensors of the same shapes, strides and dtypes have in common. The output is
// scale * (activation(sum + bias) + residual), or where there is `grad`, the gradient of the output, the gradient of the
// sum: a tensor in the dtype of computation.
struct Plan {
  Strides x, residual, grad, past, dz, buffer;  // past: [M, W-1, D], the inputs before each sequence; dz: gradient of the sum
  i64 B, T, D, W, N, left, silu;
  double scale;
  i64 size, bytes, rows;  // of the buffer [rows, size, D] and of its numbers
  i64 input, output;    // dtypes of what is summed and of the output
  i64 reversed;         // the gradient of x, from filters the other way round
  i64 groups, stride;   // of partial sums over tokens, and from one of their rows to the next
  Axes filters[3];
};

// Where the tensors of a call are; null where there is none.
struct Places {
  const void *x, *residual, *grad, *past, *dz;
  void* buffer;                  // moves on to the last inputs of every sequence behind the operator
  const i64 *indices, *ends;     // [N] rows of `past` and `buffer`, negative for none; [N + 1] ends of packed sequences
  const void* bias;              // [D], in the dtype of computation
  void *out, *out_past;          // [B, T, D], and for gradients [N, W-1, D], that of `past`
  void* partial;                 // sums over tokens, one for each of `groups`
  const void* filters[3];
};

struct Rows {
  const void* data;
  i64 row, token;
};

struct Numbers : Axes {
  const void* data;
};

struct Call : Plan {
  const Places& at;
  Rows x, residual, grad, past, dz;
  Numbers filters[3];

  Call(const Plan& plan, const Places& at)
      : Plan(plan), at(at), x{at.x, plan.x.row, plan.x.token}, residual{at.residual, plan.residual.row, plan.residual.token},
        grad{at.grad, plan.grad.row, plan.grad.token}, past{at.past, plan.past.row, plan.past.token},
        dz{at.dz, plan.dz.row, plan.dz.token} {
    for (int i = 0; i < 3; ++i) filters[i] = {plan.filters[i], at.filters[i]};
    if (at.buffer) {
      const i64 spare = (size - W + 1) * buffer.token * bytes;
      past = {static_cast<const char*>(at.buffer) + spare, buffer.row, buffer.token};
    }
  }
};

// Tokens first..last-1 of the `length` tokens of a sequence, which begins at token `start` of row `row` of the batch.
struct Block {
  i64 sequence, row, start, length, first, last;
  i64 tokens() const { return last - first; }
};

using Body = void (*)(i64, i64, void*);
using ParallelFor = int32_t (*)(i64 begin, i64 end, i64 grain, Body, void*);
extern ParallelFor parallel_for;  // torch's own pool of threads

// Calls function(i) for i in 0..count-1, on all threads where there is enough to do; `cost` is in operations.
template <class F> void for_each(i64 count, i64 cost, const F& function) {
  const Body body = [](i64 begin, i64 end, void* context) {
    for (i64 i = begin; i < end; ++i) (*static_cast<const F*>(context))(i);
  };
  constexpr i64 WORTH = 1 << 14;  // operations that pay for waking a thread
  void* context = const_cast<F*>(&function);
  if (count < 2 || count * cost < 2 * WORTH || parallel_for == nullptr)
    body(0, count, context);
  else
    parallel_for(0, count, std::max<i64>(1, WORTH / std::max<i64>(1, cost)), body, context);
}

// The blocks of all sequences; they depend on sizes alone, so that sums are the same for any number of threads.
inline std::vector<Block> blocks_of(const Call& call, i64 limit = 64) {
  const i64 size = std::max<i64>(8, std::min<i64>(limit, call.B * call.T / 32));
  std::vector<Block> blocks;
  for (i64 n = 0; n < call.N; ++n) {
    const i64 start = call.at.ends ? call.at.ends[n] : 0, length = call.at.ends ? call.at.ends[n + 1] - start : call.T;
    for (i64 first = call.at.out_past ? 1 - call.W : 0; first < length; first += size)
      blocks.push_back({n, call.at.ends ? 0 : n, start, length, first, std::min(length, first + size)});
  }
  return blocks;
}

// Calls function(block) for all blocks; `cost` is in operations on vectors for a token.
template <class F> void for_blocks(const Call& call, i64 cost, const F& function) {
  const std::vector<Block> blocks = blocks_of(call);
  for_each(blocks.size(), blocks.empty() ? 0 : blocks[0].tokens() * cost, [&](i64 i) { function(blocks[i]); });
}

template <class C> struct Scratch {
  explicit Scratch(i64 size) : data(static_cast<C*>(std::aligned_alloc(64, (size * sizeof(C) + 63) / 64 * 64 + 64))) {}
  ~Scratch() { std::free(data); }
  Scratch(const Scratch&) = delete;
  operator C*() const { return data; }
  C* data;
};

// Whether every sequence has a row of its own in the buffer, or none.
inline bool rows_are_valid(const Call& call) {
  if (!call.at.indices) return true;
  std::vector<bool> used(call.rows);
  for (i64 n = 0; n < call.N; ++n) {
    const i64 row = call.at.indices[n];
    if (row >= call.rows || (row >= 0 && used[row])) return false;
    if (row >= 0) used[row] = true;
  }
  return true;
}

// Moves the buffer of the call on.
inline void move_on(const Call& call) {
  if (!call.at.buffer) return;
  const i64 width = call.D * call.bytes, step = call.buffer.token * call.bytes;
  const char *x = static_cast<const char*>(call.x.data), *buffer = static_cast<const char*>(call.at.buffer);
  const char* x_end = x + ((call.B - 1) * call.x.row + (call.T - 1) * call.x.token) * call.bytes + width;
  const char* buffer_end = buffer + (call.rows - 1) * call.buffer.row * call.bytes + call.size * step;
  std::vector<char> own;  // a copy of the tokens where they lie in the buffer itself
  if (x < buffer_end && buffer < x_end) own.assign(x, x_end);
  const char* const from = own.empty() ? x : own.data();
  for_each(call.N, call.size * call.D, [&](i64 n) {
    const i64 row = call.at.indices ? call.at.indices[n] : n, start = call.at.ends ? call.at.ends[n] : 0;
    const i64 length = call.at.ends ? call.at.ends[n + 1] - start : call.T, kept = std::max<i64>(0, call.size - length);
    if (row < 0 || length == 0) return;
    char* to = static_cast<char*>(call.at.buffer) + row * call.buffer.row * call.bytes;
    const char* tokens = from + (call.at.ends ? 0 : n) * call.x.row * call.bytes;
    for (i64 i = 0; i < kept; ++i) std::memcpy(to + i * step, to + (i + length) * step, width);
    for (i64 i = kept; i < call.size; ++i)
      std::memcpy(to + i * step, tokens + (start + length - call.size + i) * call.x.token * call.bytes, width);
  });
}

// Runs a template for the dtypes of what is summed and of the output.
template <class F> void dispatch(const Call& call, const F& run) {
  if (call.output == 0) return run(float{}, float{});
  if (call.output == 1) return run(double{}, double{});
  if (call.output == 2) return call.input == 0 ? run(float{}, bf16{}) : run(bf16{}, bf16{});
  return call.input == 0 ? run(float{}, fp16{}) : run(fp16{}, fp16{});
}

// An operator as a whole; 1 where the rows of its buffer are wrong, and nothing was done.
template <class F> int32_t operate(const Plan* plan, const Places* at, const F& convolve) {
  const Call call(*plan, *at);
  if (!rows_are_valid(call)) return 1;
  dispatch(call, [&](auto input, auto output) { convolve(call, input, output); });
  move_on(call);
  return 0;
}

}  // namespace dynaconv
