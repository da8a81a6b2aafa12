// Depthwise convolution with the same filters for every token:
//
//   sum[t, d] = sum_w taps[w, d] * x[t + w - left, d]
//
// The gradient of x is the same sum over the gradient dz of the sum, with the taps reversed and left = W - 1 - left.
#include "tiles.h"

namespace dynaconv {
namespace {

template <class I, class S> void convolve(const Call& call) {
  using C = Compute<S>;
  constexpr int L = LANES<C>;
  const i64 W = call.W, D = call.D;
  const Taps<C> taps(call, call.filters[0], call.reversed);
  for_blocks(call, D * W / L, [&](const Block& block) {
    const Finish<S> finish(call, block);
    // A panel holds 16-bit numbers widened, once and not once for each tap.
    if (reads_in_place(call, block) && (sizeof(I) > 2 || block.tokens() <= FEW / 2)) {
      const Window<I> x(call, call.x, call.past, block, block.first - call.left, block.tokens() + W - 1);
      for (i64 d = 0; d < D; d += PIECE)
        for_rows<4, 2, C>(block.tokens(), d, std::min(D, d + PIECE), [&](auto tokens, auto vectors, i64 t, i64 c) {
          const i64 n = vectors > 1 ? L : D - c;
          Vec<C> z[tokens][vectors] = {};
          const C* own[vectors];
          each(vectors, [&](auto v) INLINE { own[v] = taps.at(c + v * L); });
          for (i64 w = 0; w < W; ++w)
            each(vectors, [&](auto v) INLINE {
              const Vec<C> f = taps.tap(own[v], w);
              each(tokens, [&](auto a) INLINE { z[a][v] += f * load_some(x.rows[t + a + w] + c + v * L, n); });
            });
          each(tokens, [&](auto a) INLINE {
            each(vectors, [&](auto v) INLINE { finish(z[a][v], block.first + t + a, c + v * L, n); });
          });
        });
      return;
    }
    Scratch<C> panel((block.tokens() + W - 1) * CHUNK);
    for (i64 d = 0; d < D; d += CHUNK) {
      const i64 n = std::min<i64>(CHUNK, D - d);
      fill_panel<I, C>(panel, call, call.x, call.past, block, block.first - call.left, block.tokens() + W - 1, d, n);
      for_tiles<4, 2, C>(block.tokens(), n, [&](auto tokens, auto vectors, i64 t, i64 c) {
        Vec<C> z[tokens][vectors] = {};
        const C* own[vectors];
        each(vectors, [&](auto v) INLINE { own[v] = taps.at(d + c + v * L); });
        for (i64 w = 0; w < W; ++w)
          each(vectors, [&](auto v) INLINE {
            const Vec<C> f = taps.tap(own[v], w);
            each(tokens, [&](auto a) INLINE { z[a][v] += f * load(panel + (t + a + w) * CHUNK + c + v * L); });
          });
        each(tokens, [&](auto a) INLINE {
          each(vectors, [&](auto v) INLINE { finish(z[a][v], block.first + t + a, d + c + v * L, n - c - v * L); });
        });
      });
    }
  });
}

// partial[g, w, d] = sum of dz[t, d] * x[t + w - left, d] over the tokens t of the blocks of group g.
template <class Z, class S> void gradient(const Call& call) {
  using C = Compute<S>;
  constexpr int L = LANES<C>;
  const i64 W = call.W, chunks = (call.D + CHUNK - 1) / CHUNK, groups = call.groups;
  C* const partial = static_cast<C*>(call.at.partial);
  const std::vector<Block> blocks = blocks_of(call);
  const i64 count = blocks.size();
  if (W <= FEW)
    return for_each(groups, count / groups * 64 * call.D * W / L, [&](i64 group) {
      C* total = partial + group * W * call.D;
      std::fill_n(total, W * call.D, C{});
      for (i64 b = count * group / groups; b < count * (group + 1) / groups; ++b) {
        const Block& block = blocks[b];
        const Window<S> x(call, call.x, call.past, block, block.first - call.left, block.tokens() + W - 1);
        const Window<Z> y(call, call.dz, {}, block, block.first, block.tokens());
        for (i64 first = 0; first < block.tokens(); first += PAGES)
          for_tiles<4, 2, C>(W, call.D, [&](auto taps, auto vectors, i64 w, i64 c) {
            Vec<C> sum[taps][vectors];
            const i64 n = vectors > 1 ? L : call.D - c;
            const auto all = [&](const auto& function) INLINE {
              each(taps, [&](auto a) INLINE {
                each(vectors, [&](auto v) INLINE { function(sum[a][v], total + (w + a) * call.D + c + v * L); });
              });
            };
            all([&](Vec<C>& value, C* place) INLINE { value = load_some(place, n); });
            for (i64 t = first; t < std::min(block.tokens(), first + PAGES); ++t)
              each(vectors, [&](auto v) INLINE {
                const Vec<C> g = load_some(y.rows[t] + c + v * L, n);
                each(taps, [&](auto a) INLINE { sum[a][v] += g * load_some(x.rows[t + w + a] + c + v * L, n); });
              });
            all([&](Vec<C>& value, C* place) INLINE { store_some(place, value, n); });
          });
      }
    });
  for_each(groups * chunks, count / groups * 64 * CHUNK * W / L, [&](i64 i) {
    const i64 group = i / chunks, d = i % chunks * CHUNK, n = std::min<i64>(CHUNK, call.D - d);
    Scratch<C> x((64 + W) * CHUNK), y(64 * CHUNK), total(W * CHUNK);
    std::fill_n(total.data, W * CHUNK, C{});
    for (i64 b = count * group / groups; b < count * (group + 1) / groups; ++b) {
      const Block& block = blocks[b];
      fill_panel<S, C>(x, call, call.x, call.past, block, block.first - call.left, block.tokens() + W - 1, d, n);
      fill_panel<Z, C>(y, call, call.dz, {}, block, block.first, block.tokens(), d, n);
      for_tiles<8, 1, C>(W, n, [&](auto taps, auto, i64 w, i64 c) {
        Vec<C> sum[taps];
        each(taps, [&](auto a) INLINE { sum[a] = load(total + (w + a) * CHUNK + c); });
        for (i64 t = 0; t < block.tokens(); ++t) {
          const Vec<C> g = load(y + t * CHUNK + c);
          each(taps, [&](auto a) INLINE { sum[a] += g * load(x + (t + w + a) * CHUNK + c); });
        }
        each(taps, [&](auto a) INLINE { store(total + (w + a) * CHUNK + c, sum[a]); });
      });
    }
    for (i64 w = 0; w < W; ++w) std::copy_n(total + w * CHUNK, n, partial + (group * W + w) * call.D + d);
  });
}

}  // namespace
}  // namespace dynaconv

using namespace dynaconv;

EXPORT int32_t dynaconv_static(const Plan* plan, const Places* at) {
  return operate(plan, at, [](const Call& call, auto i, auto s) { convolve<decltype(i), decltype(s)>(call); });
}

EXPORT int32_t dynaconv_static_gradient(const Plan* plan, const Places* at) {
  return operate(plan, at, [](const Call& call, auto z, auto s) { gradient<decltype(z), decltype(s)>(call); });
}
