// Depthwise convolution whose filters are codes [R] of a token times a basis [R, D, W], with taps [W, D] added:
//
//   f[t, w, d] = sum_r codes[t, r] basis[r, d, w] + taps[w, d],    sum[t, d] = sum_w f[t, w, d] * x[t + w - left, d]
//
// The filters of a few tokens and one vector of channels exist at a time, in registers. The basis lies packed,
// [D / L][R][W][L] with L lanes of a vector, so that a vector of channels reads it front to back. For a few tokens that
// would not pay: where W is 4 and the basis of a channel is in one piece, it is read as it lies.
#include "tiles.h"

namespace dynaconv {
namespace {

constexpr int TOKENS = BYTES == 64 ? 6 : 3;  // x 4 taps: with the basis they fill the vector registers
constexpr int PAIRS = BYTES == 64 ? 4 : 2;   // of tokens or ranks, x 4 taps, for gradients

struct Filters {
  const Numbers &codes, &basis, &taps;  // codes: head is the rank; basis: row is the rank, head the channel
  const i64 R;

  explicit Filters(const Call& call)
      : codes(call.filters[0]), basis(call.filters[1]), taps(call.filters[2]), R(codes.heads) {}
};

template <class C> struct Packed {
  static constexpr int L = LANES<C>;
  const i64 R, W, D, stride, channel, rank;  // the last two: from one channel or rank of the basis to the next
  const C* const unpacked;              // null where the basis is packed
  const Taps<C> taps;
  Scratch<C> basis;

  Packed(const Call& call, const Filters& f, bool always = false)
      : R(f.R), W(call.W), D(call.D), stride((call.D + L - 1) / L * L), channel(f.basis.head), rank(f.basis.row),
        unpacked(!always && call.B * call.T < 8 && W == 4 && f.basis.tap == 1 &&
                         f.basis.dtype == dtype_of(C{})
                     ? static_cast<const C*>(f.basis.data)
                     : nullptr),
        taps(call, f.taps, false), basis(unpacked ? 0 : stride * R * W) {
    if (unpacked) return;
    for_each(stride / L, R * W * L, [&](i64 block) {
      C* to = basis + block * R * W * L;
      Scratch<C> own(L * W);
      std::fill_n(own.data, L * W, C{});
      for (i64 r = 0; r < R; ++r, to += W * L) {
        const i64 lanes = std::min<i64>(L, D - block * L);
        read<C>(own, f.basis, block * L * channel + r * rank, f.basis.tap, W, channel, lanes);
        for (i64 w = 0; w < W; ++w)
          for (int lane = 0; lane < L; ++lane) to[w * L + lane] = own[lane * W + w];
      }
    });
  }

  // Adds codes times basis in the order of the ranks, as everywhere, the four taps of a channel at once.
  template <int TT> __attribute__((noinline)) void add_unpacked(Vec<C> (&f)[TT][4], const C* codes, i64 d) const {
    using Quad = typename VectorOf<C, 4>::type;
    C taps[4][L], sums[L][4];
    for (int a = 0; a < TT; ++a) {
      std::memcpy(taps, f[a], sizeof taps);
      for (int lane = 0; lane < L; ++lane)
        for (int k = 0; k < 4; ++k) sums[lane][k] = taps[k][lane];
      constexpr int EACH = L < 8 ? L : 8;  // channels at a time: enough sums under way, and all in registers
      for (int lane = 0; lane < L; lane += EACH) {
        const C* own[EACH];
        Quad sum[EACH], u;
        for (int i = 0; i < EACH; ++i) own[i] = unpacked + std::min(d + lane + i, D - 1) * channel;
        std::memcpy(sum, sums[lane], sizeof sum);
        for (i64 r = 0; r < R; ++r)
          for (int i = 0; i < EACH; ++i) {
            std::memcpy(&u, own[i] + r * rank, sizeof u);
            sum[i] += codes[a * R + r] * u;
          }
        std::memcpy(sums[lane], sum, sizeof sum);
      }
      for (int lane = 0; lane < L; ++lane)
        for (int k = 0; k < 4; ++k) taps[k][lane] = sums[lane][k];
      std::memcpy(f[a], taps, sizeof taps);
    }
  }

  // Calls use(a, k, filter) with the filters of consecutive tokens a for the taps w + k and the channels d..d+L-1, from
  // their codes [.][R]. They stay in registers: no other function may see where they are.
  template <int TT, int TAPS, class F> INLINE void filters(const C* codes, i64 w, i64 d, const F& use) const {
    const C* added = taps.given ? taps.at(d) : nullptr;
    const auto start = [&](int k) INLINE { return added ? taps.tap(added, w + k) : Vec<C>{}; };
    if constexpr (TAPS == 4)
      if (unpacked) {
        Vec<C> in_memory[TT][4];
        for (int k = 0; k < 4; ++k)
          for (int a = 0; a < TT; ++a) in_memory[a][k] = start(k);
        add_unpacked(in_memory, codes, d);
        each(Constant<4>{}, [&](auto k) INLINE { each(Constant<TT>{}, [&](auto a) INLINE { use(a, k, in_memory[a][k]); }); });
        return;
      }
    constexpr Constant<TT> tokens;
    constexpr Constant<TAPS> four;
    Vec<C> f[TT][TAPS];
    each(four, [&](auto k) INLINE {
      const Vec<C> first = start(k);
      each(tokens, [&](auto a) INLINE { f[a][k] = first; });
    });
    const C* b = basis + d * R * W + w * L;
    for (i64 r = 0; r < R; ++r, b += W * L)
      each(four, [&](auto k) INLINE {
        const Vec<C> u = load(b + k * L);
        each(tokens, [&](auto a) INLINE { f[a][k] += codes[a * R + r] * u; });
      });
    each(four, [&](auto k) INLINE { each(tokens, [&](auto a) INLINE { use(a, k, f[a][k]); }); });
  }
};

// Calls function(Constant taps, w) for all taps, four at a time.
template <class F> inline void for_taps(i64 W, const F& function) {
  i64 w = 0;
  for (; w + 4 <= W; w += 4) function(Constant<4>{}, w);
  if (W - w == 3) return function(Constant<3>{}, w);
  if (W - w == 2) return function(Constant<2>{}, w);
  if (W - w == 1) return function(Constant<1>{}, w);
}

// Codes of tokens first..first+count-1 of a sequence, [count][R]; 0 outside it.
template <class C> void fill_codes(C* to, const Filters& f, const Block& block, i64 first, i64 count) {
  for (i64 i = 0; i < count; ++i, to += f.R) {
    const i64 t = first + i;
    if (t < 0 || t >= block.length)
      std::fill_n(to, f.R, C{});
    else
      read<C>(to, f.codes, block.row * f.codes.row + (block.start + t) * f.codes.token, f.codes.head, f.R);
  }
}

template <class I, class S> void convolve(const Call& call) {
  using C = Compute<S>;
  const Filters f(call);
  constexpr int L = LANES<C>;
  const i64 W = call.W, R = f.R;
  const Packed<C> packed(call, f);
  for_blocks(call, call.D * (R + 1) * W / L, [&](const Block& block) {
    const Finish<S> finish(call, block);
    Scratch<C> panel((block.tokens() + W - 1) * CHUNK), codes(block.tokens() * R);
    fill_codes<C>(codes, f, block, block.first, block.tokens());
    for (i64 d = 0; d < call.D; d += CHUNK) {
      const i64 n = std::min<i64>(CHUNK, call.D - d);
      fill_panel<I, C>(panel, call, call.x, call.past, block, block.first - call.left, block.tokens() + W - 1, d, n);
      for_tiles<TOKENS, 1, C>(block.tokens(), n, [&](auto tokens, auto, i64 t, i64 c) {
        constexpr int TT = decltype(tokens)::value;
        Vec<C> z[TT] = {};
        for_taps(W, [&](auto taps, i64 w) {
          packed.template filters<TT, taps>(codes + t * R, w, d + c, [&](auto a, auto k, Vec<C> filter) INLINE {
            z[a] += filter * load(panel + (t + a + w + k) * CHUNK + c);
          });
        });
        each(tokens, [&](auto a) INLINE { finish(z[a], block.first + t + a, d + c, n - c); });
      });
    }
  });
}

// The gradient of x: dx[s] = sum_w f[t, w] * dz[t] with t = s + W - 1 - left - w. call.x is dz.
template <class Z, class S> void transpose(const Call& call) {
  using C = Compute<S>;
  const Filters f(call);
  constexpr int L = LANES<C>;
  const i64 W = call.W, R = f.R;
  const Packed<C> packed(call, f);
  for_blocks(call, call.D * (R + 1) * W / L, [&](const Block& block) {
    const Finish<S> finish(call, block);
    const i64 count = block.tokens() + W - 1, first = block.first - call.left;
    Scratch<C> panel(count * CHUNK), codes(count * R), products(count * W * L);
    fill_codes<C>(codes, f, block, first, count);
    for (i64 d = 0; d < call.D; d += CHUNK) {
      const i64 n = std::min<i64>(CHUNK, call.D - d);
      fill_panel<Z, C>(panel, call, call.x, {}, block, first, count, d, n);
      for (i64 c = 0; c < n; c += L) {
        for_tiles<TOKENS, 1, C>(count, L, [&](auto tokens, auto, i64 t, i64) {
          constexpr int TT = decltype(tokens)::value;
          for_taps(W, [&](auto taps, i64 w) {
            packed.template filters<TT, taps>(codes + t * R, w, d + c, [&](auto a, auto k, Vec<C> filter) INLINE {
              store(products + ((t + a) * W + w + k) * L, filter * load(panel + (t + a) * CHUNK + c));
            });
          });
        });
        for (i64 s = 0; s < block.tokens(); ++s) {
          Vec<C> z = {};
          for (i64 w = 0; w < W; ++w) z += load(products + ((s + W - 1 - w) * W + w) * L);
          finish(z, block.first + s, d + c, n - c);
        }
      }
    }
  });
}

// With p[t, w, d] = dz[t, d] * x[t + w - left, d]:
//   dcodes[t, r] = scale * sum of p[t, w, d] basis[r, d, w] over w and d, [B, T, R],
//   partial[g, r, w, d] = sum of codes[t, r] p[t, w, d] over the tokens t of the blocks of group g, [G, R, W, stride].
template <class Z, class S> void gradient(const Call& call) {
  using C = Compute<S>;
  const Filters f(call);
  C *const dcodes = static_cast<C*>(call.at.out), *const partial = static_cast<C*>(call.at.partial);
  const i64 groups = call.groups, stride = call.stride;
  constexpr int L = LANES<C>;
  const i64 W = call.W, R = f.R;
  const Packed<C> packed(call, f, true);
  const std::vector<Block> blocks = blocks_of(call, 32);
  const i64 total = blocks.size();
  for_each(groups, total / groups * 32 * call.D * (2 * R + 1) * W / L, [&](i64 group) {
    C* own = partial + group * R * W * stride;
    std::fill_n(own, R * W * stride, C{});
    Scratch<C> x((32 + W) * CHUNK), y(32 * CHUNK), codes(32 * R), p(32 * W * L), lanes(32 * R * L);
    for (i64 b = total * group / groups; b < total * (group + 1) / groups; ++b) {
      const Block& block = blocks[b];
      const i64 count = block.tokens();
      fill_codes<C>(codes, f, block, block.first, count);
      std::fill_n(lanes.data, count * R * L, C{});
      for (i64 d = 0; d < call.D; d += CHUNK) {
        const i64 n = std::min<i64>(CHUNK, call.D - d);
        fill_panel<S, C>(x, call, call.x, call.past, block, block.first - call.left, count + W - 1, d, n);
        fill_panel<Z, C>(y, call, call.dz, {}, block, block.first, count, d, n);
        for (i64 c = 0; c < n; c += L) {
          for (i64 t = 0; t < count; ++t)
            for (i64 w = 0; w < W; ++w)
              store(p + (t * W + w) * L, load(y + t * CHUNK + c) * load(x + (t + w) * CHUNK + c));
          const C* u = packed.basis + (d + c) * R * W;
          for_taps(W, [&](auto four, i64 w) {
            constexpr int taps = decltype(four)::value;
            for_tiles<PAIRS, 1, C>(count, L, [&](auto tokens, auto, i64 t, i64) {
              Vec<C> products[tokens][taps];
              each(tokens, [&](auto a) INLINE {
                each(four, [&](auto k) INLINE { products[a][k] = load(p + ((t + a) * W + w + k) * L); });
              });
              C* to = lanes + t * R * L;
              const C* from = u + w * L;
              const i64 token = R * L, rank = W * L;
              for (const C* const end = from + R * rank; from < end; from += rank, to += L) {
                Vec<C> sum[tokens];
                each(tokens, [&](auto a) INLINE { sum[a] = load(to + a * token); });
                each(four, [&](auto k) INLINE {
                  const Vec<C> own = load(from + k * L);
                  each(tokens, [&](auto a) INLINE { sum[a] += products[a][k] * own; });
                });
                each(tokens, [&](auto a) INLINE { store(to + a * token, sum[a]); });
              }
            });
            for_tiles<PAIRS, 1, C>(R, L, [&](auto ranks, auto, i64 r, i64) {
              Vec<C> sum[ranks][taps];
              const auto all = [&](const auto& function) INLINE {
                each(ranks, [&](auto a) INLINE {
                  each(four, [&](auto k) INLINE { function(sum[a][k], own + ((r + a) * W + w + k) * stride + d + c); });
                });
              };
              all([](Vec<C>& value, C* place) INLINE { value = load(place); });
              const C *code = codes + r, *from = p + w * L;
              for (const C* const end = from + count * W * L; from < end; from += W * L, code += R)
                each(four, [&](auto k) INLINE {
                  const Vec<C> product = load(from + k * L);
                  each(ranks, [&](auto a) INLINE { sum[a][k] += code[a] * product; });
                });
              all([](Vec<C>& value, C* place) INLINE { store(place, value); });
            });
          });
        }
      }
      for (i64 t = 0; t < count; ++t)
        for (i64 r = 0; r < R; ++r) {
          const C sum = sum_of<C, L>(load(lanes + (t * R + r) * L));
          dcodes[(block.row * call.T + block.start + block.first + t) * R + r] = sum * static_cast<C>(call.scale);
        }
    }
  });
}

}  // namespace
}  // namespace dynaconv

using namespace dynaconv;

EXPORT int32_t dynaconv_lowrank(const Plan* plan, const Places* at) {
  return operate(plan, at, [](const Call& call, auto i, auto s) {
    using I = decltype(i);
    using S = decltype(s);
    call.reversed ? transpose<I, S>(call) : convolve<I, S>(call);
  });
}

EXPORT int32_t dynaconv_lowrank_gradient(const Plan* plan, const Places* at) {
  return operate(plan, at, [](const Call& call, auto z, auto s) { gradient<decltype(z), decltype(s)>(call); });
}
