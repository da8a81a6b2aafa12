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

struct Filters {
  const Numbers &codes, &basis, &taps;  // codes: head is the rank; basis: row is the rank, head the channel
  const i64 R;

  explicit Filters(const Call& call)
      : codes(call.filters[0]), basis(call.filters[1]), taps(call.filters[2]), R(codes.heads) {}
};

template <class C> struct Packed {
  static constexpr int L = LANES<C>;
  const i64 R, W, D, stride, channel;  // channel: from one channel of the basis to the next
  const C* const unpacked;              // null where the basis is packed
  Scratch<C> basis, taps;

  Packed(const Call& call, const Filters& f, bool always = false)
      : R(f.R), W(call.W), D(call.D), stride((call.D + L - 1) / L * L), channel(f.basis.head),
        unpacked(!always && call.B * call.T < 8 && W == 4 && f.basis.tap == 1 && f.basis.row == 4 &&
                         f.basis.dtype == dtype_of(C{})
                     ? static_cast<const C*>(f.basis.data)
                     : nullptr),
        basis(unpacked ? 0 : stride * R * W), taps(f.taps.data ? stride * W : 0) {
    if (f.taps.data) fill_taps<C>(taps, f.taps, call, stride, false);
    if (unpacked) return;
    for_each(stride / L, R * W * L, [&](i64 block) {
      C* to = basis + block * R * W * L;
      Scratch<C> own(R * W);
      for (int lane = 0; lane < L; ++lane) {
        const i64 d = block * L + lane;
        if (d >= call.D)
          std::fill_n(own.data, R * W, C{});
        else if (f.basis.row == W * f.basis.tap)
          read<C>(own, f.basis, d * f.basis.head, f.basis.tap, R * W);
        else
          for (i64 r = 0; r < R; ++r) read<C>(own + r * W, f.basis, d * f.basis.head + r * f.basis.row, f.basis.tap, W);
        for (i64 k = 0; k < R * W; ++k) to[k * L + lane] = own[k];
      }
    });
  }

  // Adds codes times basis in the order of the ranks, as everywhere, the four taps of a channel at once.
  template <int TT> void add_unpacked(Vec<C> (&f)[TT][4], const C* codes, i64 d) const {
    using Quad = typename VectorOf<C, 4>::type;
    for (int a = 0; a < TT; ++a) {
      Quad sum[L];
      for (int lane = 0; lane < L; ++lane) sum[lane] = Quad{f[a][0][lane], f[a][1][lane], f[a][2][lane], f[a][3][lane]};
      for (i64 r = 0; r < R; ++r)
        for (int lane = 0; lane < L; ++lane) {
          Quad u;
          std::memcpy(&u, unpacked + std::min(d + lane, D - 1) * channel + r * 4, sizeof u);
          sum[lane] += codes[a * R + r] * u;
        }
      for (int k = 0; k < 4; ++k)
        for (int lane = 0; lane < L; ++lane) f[a][k][lane] = sum[lane][k];
    }
  }

  // The filters of consecutive tokens for the taps w.. and the channels d..d+L-1, from their codes [.][R].
  template <int TT, int TAPS> void filters(Vec<C> (&f)[TT][TAPS], const C* codes, i64 w, i64 d, bool has_taps) const {
    for (int k = 0; k < TAPS; ++k) {
      const Vec<C> start = has_taps ? load(taps + (w + k) * stride + d) : Vec<C>{};
      for (int a = 0; a < TT; ++a) f[a][k] = start;
    }
    if constexpr (TAPS == 4)
      if (unpacked) return add_unpacked(f, codes, d);
    const C* b = basis + d * R * W + w * L;
    for (i64 r = 0; r < R; ++r, b += W * L)
      for (int k = 0; k < TAPS; ++k) {
        const Vec<C> u = load(b + k * L);
        for (int a = 0; a < TT; ++a) f[a][k] += codes[a * R + r] * u;
      }
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
          Vec<C> filters[TT][taps];
          packed.filters(filters, codes + t * R, w, d + c, f.taps.data != nullptr);
          for (int k = 0; k < taps; ++k)
            for (int a = 0; a < TT; ++a) z[a] += filters[a][k] * load(panel + (t + a + w + k) * CHUNK + c);
        });
        for (int a = 0; a < TT; ++a) finish(z[a], block.first + t + a, d + c, n - c);
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
            Vec<C> filters[TT][taps];
            packed.filters(filters, codes + t * R, w, d + c, f.taps.data != nullptr);
            for (int a = 0; a < TT; ++a)
              for (int k = 0; k < taps; ++k)
                store(products + ((t + a) * W + w + k) * L, filters[a][k] * load(panel + (t + a) * CHUNK + c));
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
            for_tiles<2, 1, C>(count, L, [&](auto tokens, auto, i64 t, i64) {
              Vec<C> products[tokens][taps];
              for (int a = 0; a < tokens; ++a)
                for (int k = 0; k < taps; ++k) products[a][k] = load(p + ((t + a) * W + w + k) * L);
              for (i64 r = 0; r < R; ++r) {
                Vec<C> sum[tokens];
                for (int a = 0; a < tokens; ++a) sum[a] = load(lanes + ((t + a) * R + r) * L);
                for (int k = 0; k < taps; ++k)
                  for (int a = 0; a < tokens; ++a) sum[a] += products[a][k] * load(u + (r * W + w + k) * L);
                for (int a = 0; a < tokens; ++a) store(lanes + ((t + a) * R + r) * L, sum[a]);
              }
            });
            for_tiles<2, 1, C>(R, L, [&](auto ranks, auto, i64 r, i64) {
              Vec<C> sum[ranks][taps];
              const auto place = [&](int a, int k) { return own + ((r + a) * W + w + k) * stride + d + c; };
              for (int a = 0; a < ranks; ++a)
                for (int k = 0; k < taps; ++k) sum[a][k] = load(place(a, k));
              for (i64 t = 0; t < count; ++t)
                for (int k = 0; k < taps; ++k) {
                  const Vec<C> product = load(p + (t * W + w + k) * L);
                  for (int a = 0; a < ranks; ++a) sum[a][k] += codes[t * R + r + a] * product;
                }
              for (int a = 0; a < ranks; ++a)
                for (int k = 0; k < taps; ++k) store(place(a, k), sum[a][k]);
            });
          });
        }
      }
      for (i64 t = 0; t < count; ++t)
        for (i64 r = 0; r < R; ++r) {
          C sum = 0;
          for (int lane = 0; lane < L; ++lane) sum += lanes[(t * R + r) * L + lane];
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
