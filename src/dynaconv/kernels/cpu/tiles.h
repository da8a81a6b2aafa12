// What the operators share: sequences cut into blocks of tokens, panels of their inputs, and what follows the sum.
//
// Dims: B batch, T tokens, D channels, H filters (C = D / H consecutive channels share one), W taps, N sequences.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <type_traits>
#include <vector>

#include "vector.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace dynaconv {

using i64 = int64_t;
template <int N> using Constant = std::integral_constant<int, N>;

constexpr int CHUNK = 64;  // channels of a panel: a window of rows stays in the L1 cache

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
  constexpr i64 WORTH = 1 << 17;  // operations that pay for waking a thread
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

// `count` numbers, or a whole vector where there are more.
template <class S> inline Vec<Compute<S>> load_some(const S* p, i64 count) {
  return count >= LANES<Compute<S>> ? load(p) : load(p, count);
}
template <class S> inline void store_some(S* p, Vec<Compute<S>> v, i64 count) {
  count >= LANES<Compute<S>> ? store(p, v) : store(p, v, count);
}

// Where token t of a sequence is, in x or in what came before it; null where it is in neither.
template <class I> inline const I* token_of(const Call& call, const Rows& x, const Rows& past, const Block& block, i64 t) {
  if (t >= 0 && t < block.length)
    return static_cast<const I*>(x.data) + block.row * x.row + (block.start + t) * x.token;
  const i64 row = call.at.indices ? call.at.indices[block.sequence] : block.sequence;
  if (t >= 0 || !past.data || row < 0) return nullptr;
  return static_cast<const I*>(past.data) + row * past.row + (t + call.W - 1) * past.token;
}

// Channels d..d+n-1 of tokens first.. of a sequence, [count][CHUNK]; 0 outside it, but for what came before it.
template <class I, class C>
void fill_panel(C* panel, const Call& call, const Rows& x, const Rows& past, const Block& block, i64 first, i64 count,
                i64 d, i64 n) {
  constexpr int L = LANES<C>;
  for (i64 i = 0; i < count; ++i, panel += CHUNK) {
    const I* p = token_of<I>(call, x, past, block, first + i);
    for (i64 c = 0; c < n; c += L) store(panel + c, p ? load_some(p + d + c, n - c) : Vec<C>{});
  }
}

// For few taps the copy into a panel would not pay. Their windows are pointers to whole rows where these lie, and tokens
// come before channels, as they do in memory.
constexpr i64 FEW = 8;       // taps
constexpr i64 PIECE = 512;   // channels at a time, whose taps and rows stay in the L1 cache
constexpr i64 PAGES = 16;    // tokens at a time, whose rows the TLB can hold

template <class I> struct Window {
  std::vector<const I*> rows;  // of tokens first..first+count-1
  std::vector<I> zeros;        // the row of a token outside the sequence

  Window(const Call& call, const Rows& x, const Rows& past, const Block& block, i64 first, i64 count) : rows(count) {
    for (i64 i = 0; i < count; ++i) {
      rows[i] = token_of<I>(call, x, past, block, first + i);
      if (rows[i]) continue;
      if (zeros.empty()) zeros.resize(call.D);
      rows[i] = zeros.data();
    }
  }
};

// How dtypes are numbered: 0 fp32, 1 fp64, 2 bf16, 3 fp16.
constexpr i64 dtype_of(float) { return 0; }
constexpr i64 dtype_of(double) { return 1; }

// Reads [rows][count] numbers of one tensor, a row `row_step` behind the one before, and a number `step`.
template <class C>
void read(C* to, const Numbers& from, i64 offset, i64 step, i64 count, i64 row_step = 0, i64 rows = 1) {
  const auto copy = [&](const auto* p) {
    p += offset;
    if constexpr (std::is_same_v<decltype(p), const C*>)
      if (step == 1 && (rows == 1 || row_step == count)) return static_cast<void>(std::copy_n(p, rows * count, to));
    for (i64 row = 0; row < rows; ++row)
      for (i64 i = 0; i < count; ++i) *to++ = scalar(p + row * row_step + i * step);
  };
  switch (from.dtype) {
    case 0: return copy(static_cast<const float*>(from.data));
    case 1: return copy(static_cast<const double*>(from.data));
    case 2: return copy(static_cast<const bf16*>(from.data));
    default: return copy(static_cast<const fp16*>(from.data));
  }
}

// Static filters [H, W] as taps, [W][stride]: one row of channels for every tap; reversed, for gradients.
template <class C> void fill_taps(C* taps, const Numbers& filters, const Call& call, i64 stride, bool reversed) {
  const i64 H = filters.heads, size = call.D / H, first = reversed ? call.W - 1 : 0, step = reversed ? -1 : 1;
  if (size == 1) {
    for (i64 w = 0; w < call.W; ++w)
      read<C>(taps + w * stride, filters, (first + w * step) * filters.tap, filters.head, H);
    return;
  }
  Scratch<C> filter(call.W);
  for (i64 h = 0; h < H; ++h) {
    read<C>(filter, filters, h * filters.head + first * filters.tap, step * filters.tap, call.W);
    for (i64 w = 0; w < call.W; ++w) std::fill_n(taps + w * stride + h * size, size, filter[w]);
  }
}

// Tiles of TT tokens and NV vectors of channels, or fewer at the ends: tile(Constant tokens, Constant vectors, t, c).
template <int TT, int NV, class C, class F> inline void for_tiles(i64 tokens, i64 n, const F& tile) {
  i64 c = 0;
  const auto column = [&](auto vectors) {
    i64 t = 0;
    for (; t + TT <= tokens; t += TT) tile(Constant<TT>{}, vectors, t, c);
    for (; t < tokens; ++t) tile(Constant<1>{}, vectors, t, c);
  };
  for (; c + NV * LANES<C> <= n; c += NV * LANES<C>) column(Constant<NV>{});
  for (; c < n; c += LANES<C>) column(Constant<1>{});
}

// The same where rows are read as they lie: along the channels first..last-1 of a few tokens, then of the next ones.
template <int TT, int NV, class C, class F> inline void for_rows(i64 tokens, i64 first, i64 last, const F& tile) {
  const auto row = [&](auto count, i64 t) {
    i64 c = first;
    for (; c + NV * LANES<C> <= last; c += NV * LANES<C>) tile(count, Constant<NV>{}, t, c);
    for (; c < last; c += LANES<C>) tile(count, Constant<1>{}, t, c);
  };
  i64 t = 0;
  for (; t + TT <= tokens; t += TT) row(Constant<TT>{}, t);
  for (; t < tokens; ++t) row(Constant<1>{}, t);
}

inline Vec<float> exponential(Vec<float> x) {
  using Int = VectorOf<int32_t, LANES<float>>::type;
  x = x > 104.0f ? Vec<float>{} + 104.0f : x;
  x = x < -104.0f ? Vec<float>{} - 104.0f : x;
  const Vec<float> magic = Vec<float>{} + 12582912.0f;  // what is added to it is rounded to an integer
  const Vec<float> n = (x * 1.44269504088896341f + magic) - magic;
  const Vec<float> r = (x - n * 0.693145751953125f) - n * 1.42860682030941723212e-6f;
  Vec<float> p = Vec<float>{} + 1.9841270e-4f;
  for (const float factor : {1.3888889e-3f, 8.3333333e-3f, 4.1666667e-2f, 1.6666667e-1f, 0.5f, 1.0f, 1.0f})
    p = p * r + factor;
  const Int whole = __builtin_convertvector(n, Int), half = whole >> 1;
  const auto power = [](Int e) { return bits_as<Vec<float>>((e + 127) << 23); };
  return p * power(half) * power(whole - half);  // in two steps, for subnormal and infinite results
}
inline Vec<double> exponential(Vec<double> x) {
  for (int i = 0; i < LANES<double>; ++i) x[i] = std::exp(x[i]);
  return x;
}

// What follows the sums of a block, of one vector of channels at a time.
template <class S> struct Finish {
  using C = Compute<S>;
  const Call& call;
  const Block& block;
  const C scale;
  S* const out;      // where its sequence begins
  const bool plain;  // nothing but the factor follows

  Finish(const Call& call, const Block& block)
      : call(call), block(block), scale(static_cast<C>(call.scale)),
        out(static_cast<S*>(call.at.out) + (block.row * call.T + block.start) * call.D),
        plain(!call.silu && !call.at.bias && !call.residual.data && !call.grad.data && !call.at.out_past &&
              !(call.at.indices && call.at.indices[block.sequence] < 0)) {}

  // z: the sum of channels d..d+count-1, or of as many as a vector has, of token t of the sequence.
  void operator()(Vec<C> z, i64 t, i64 d, i64 count) const {
    if (plain && count >= LANES<C>) return store(out + t * call.D + d, z * scale);
    rest(z, t, d, count);
  }

  __attribute__((noinline)) void rest(Vec<C> z, i64 t, i64 d, i64 count) const {
    if (t < 0)
      return store_some(static_cast<C*>(call.at.out_past) + (block.sequence * (call.W - 1) + call.W - 1 + t) * call.D + d,
                        z * scale, count);
    S* to = out + t * call.D + d;
    if (call.at.indices && call.at.indices[block.sequence] < 0) return store_some(to, Vec<C>{}, count);
    const auto at = [&](const Rows& x) {
      return load_some(static_cast<const S*>(x.data) + block.row * x.row + (block.start + t) * x.token + d, count);
    };
    if (call.at.bias) z += load_some(static_cast<const C*>(call.at.bias) + d, count);
    const Vec<C> gate = call.silu ? 1 / (1 + exponential(-z)) : Vec<C>{} + 1;
    if (call.grad.data)
      return store_some(static_cast<C*>(call.at.out) + (block.row * call.T + block.start + t) * call.D + d,
                        at(call.grad) * gate * (1 + z * (1 - gate)), count);
    z *= gate;
    if (call.residual.data) z += at(call.residual);
    store_some(to, z * scale, count);
  }
};

// Whether every sequence has a row of its own in the buffer, or none.
inline bool rows_are_valid(const Call& call) {
  if (!call.at.buffer || !call.at.indices) return true;
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
  for_each(call.N, call.size * call.D, [&](i64 n) {
    const i64 row = call.at.indices ? call.at.indices[n] : n, start = call.at.ends ? call.at.ends[n] : 0;
    const i64 length = call.at.ends ? call.at.ends[n + 1] - start : call.T, kept = std::max<i64>(0, call.size - length);
    if (row < 0 || length == 0) return;
    char* to = static_cast<char*>(call.at.buffer) + row * call.buffer.row * call.bytes;
    const char* x = static_cast<const char*>(call.x.data) + (call.at.ends ? 0 : n) * call.x.row * call.bytes;
    for (i64 i = 0; i < kept; ++i) std::memcpy(to + i * step, to + (i + length) * step, width);
    for (i64 i = kept; i < call.size; ++i)
      std::memcpy(to + i * step, x + (start + length - call.size + i) * call.x.token * call.bytes, width);
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
