// What the operators share: panels of their inputs, taps, tiles of tokens and channels, and what follows the sum.
//
// Dims: B batch, T tokens, D channels, H filters (C = D / H consecutive channels share one), W taps, N sequences.
#pragma once
#include <cmath>
#include <type_traits>
#include <utility>

#include "call.h"

#define INLINE __attribute__((always_inline))

namespace dynaconv {

template <int N> using Constant = std::integral_constant<int, N>;

// Calls function(i) for i in 0..N-1, each a constant: what an array holds can then stay in registers.
template <class F, int... I> INLINE inline void each_of(const F& function, std::integer_sequence<int, I...>) {
  (function(Constant<I>{}), ...);
}
template <int N, class F> INLINE inline void each(Constant<N>, const F& function) {
  each_of(function, std::make_integer_sequence<int, N>{});
}

constexpr int CHUNK = 64;  // channels of a panel: a window of rows stays in the L1 cache

// `count` numbers, or a whole vector where there are more.
template <class S> inline Vec<Compute<S>> load_some(const S* p, i64 count) {
  return count >= LANES<Compute<S>> ? load(p) : load(p, count);
}
template <class S> inline void store_some(S* p, Vec<Compute<S>> v, i64 count) {
  count >= LANES<Compute<S>> ? store(p, v) : store(p, v, count);
}

// `count` times the same number, four at a time: for few of them the library's fill would take longer to begin.
template <class C> inline void fill_some(C* to, C value, i64 count) {
  const typename VectorOf<C, 4>::type four = {value, value, value, value};
  for (; count >= 4; count -= 4, to += 4) std::memcpy(to, &four, sizeof four);
  for (; count > 0; --count) *to++ = value;
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
    if (p && d + n < call.D)  // of the next panel; no stream that the processor foresees
      for (i64 c = 0; c < n; c += 64 / static_cast<i64>(sizeof(I))) __builtin_prefetch(p + d + n + c, 0, 2);
  }
}

// For few taps the copy into a panel would not pay. Their windows are pointers to whole rows where these lie, and tokens
// come before channels, as they do in memory.
constexpr i64 FEW = 8;       // taps, or for more taps, half of the tokens
constexpr i64 PIECE = 512;   // channels at a time, whose taps and rows stay in the L1 cache
constexpr i64 PAGES = 16;    // tokens at a time, whose rows the TLB can hold

inline bool reads_in_place(const Call& call, const Block& block) { return call.W <= FEW || block.tokens() <= FEW / 2; }

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

// Static filters [H, W], reversed for gradients: where all lanes of a vector share a filter as they are, [H][W], otherwise
// as one row of channels for every tap, [W][stride].
template <class C> struct Taps {
  const i64 W, size, stride;  // size: channels of a head
  const bool shared, given;
  Scratch<C> data;

  Taps(const Call& call, const Numbers& filters, bool reversed)
      : W(call.W), size(call.D / filters.heads), stride((call.D + LANES<C> - 1) / LANES<C> * LANES<C>),
        shared(size % LANES<C> == 0), given(filters.data != nullptr), data(!given ? 0 : shared ? filters.heads * W : W * stride) {
    const i64 H = filters.heads, first = reversed ? W - 1 : 0, step = reversed ? -1 : 1;
    if (!given) return;
    if (shared) {
      read<C>(data, filters, first * filters.tap, step * filters.tap, W, filters.head, H);
      return;
    }
    if (size == 1) {
      for (i64 w = 0; w < W; ++w) read<C>(data + w * stride, filters, (first + w * step) * filters.tap, filters.head, H);
      return;
    }
    Scratch<C> filter(W);
    for (i64 h = 0; h < H; ++h) {
      read<C>(filter, filters, h * filters.head + first * filters.tap, step * filters.tap, W);
      for (i64 w = 0; w < W; ++w) std::fill_n(data + w * stride + h * size, size, filter[w]);
    }
  }

  // The taps of a vector of channels that begins at d, and one of them.
  const C* at(i64 d) const { return data + (shared ? d / size * W : d); }
  Vec<C> tap(const C* taps, i64 w) const { return shared ? broadcast(taps[w]) : load(taps + w * stride); }
};

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

constexpr int WIDE = BYTES == 64 ? 4 : 2;  // vectors of a tile, which with four tokens fill the registers

// Adds sum_w filters[a][w] * panel[a + w] to z[a]: tokens a of a tile whose vectors of channels share a filter. A row of
// the panel is loaded once for all tokens; every token adds its taps in their order.
template <int TT, int NV, class C>
INLINE inline void slide(Vec<C> (&z)[TT][NV], const C* panel, const C* const (&filters)[TT], i64 W) {
  const auto add = [&](i64 row, auto first, auto last) INLINE {  // for the tokens first..last-1
    constexpr int low = first, high = last;
    Vec<C> x[NV];
    each(Constant<NV>{}, [&](auto v) INLINE { x[v] = load(panel + row * CHUNK + v * LANES<C>); });
    each(Constant<TT>{}, [&](auto a) INLINE {
      if constexpr (a >= low && a < high) {
        const Vec<C> f = broadcast(filters[a][row - a]);
        each(Constant<NV>{}, [&](auto v) INLINE { z[a][v] += f * x[v]; });
      }
    });
  };
  each(Constant<TT - 1>{}, [&](auto r) INLINE { add(r, Constant<0>{}, Constant<r + 1>{}); });
  for (i64 row = TT - 1; row < W; ++row) add(row, Constant<0>{}, Constant<TT>{});
  each(Constant<TT - 1>{}, [&](auto r) INLINE { add(W + r, Constant<r + 1>{}, Constant<TT>{}); });
}

// Tiles where rows are read as they lie: along the channels first..last-1 of a few tokens, then of the next ones.
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
  const i64 D;
  S* const out;      // where its sequence begins
  const bool plain;  // nothing but the factor follows

  Finish(const Call& call, const Block& block)
      : call(call), block(block), scale(static_cast<C>(call.scale)), D(call.D),
        out(static_cast<S*>(call.at.out) + (block.row * call.T + block.start) * call.D),
        plain(!call.silu && !call.at.bias && !call.residual.data && !call.grad.data && !call.at.out_past &&
              !(call.at.indices && call.at.indices[block.sequence] < 0)) {}

  // z: the sum of channels d..d+count-1, or of as many as a vector has, of token t of the sequence.
  INLINE void operator()(Vec<C> z, i64 t, i64 d, i64 count) const {
    if (__builtin_expect(plain && count >= LANES<C>, 1)) return store(out + t * D + d, z * scale);
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

}  // namespace dynaconv
