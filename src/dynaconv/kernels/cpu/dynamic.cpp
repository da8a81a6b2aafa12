// Depthwise convolution with a filter of its own for every token and head, and static taps [W, D] added to them:
//
//   sum[t, d] = sum_w (f[t, d / C, w] + taps[w, d]) * x[t + w - left, d]
//
// The gradient of x is the same sum over the gradient dz of the sum, with filters read along a diagonal,
//   dx[s, d] = sum_v (f[t, d / C, W - 1 - v] + taps[W - 1 - v, d]) * dz[t, d],  t = s + v - (W - 1 - left).
#include "tiles.h"

namespace dynaconv {
namespace {

// The filters that output t of a block has for the rows of its window, [heads][W]; 0 where a row is of another sequence.
template <class C> void fill_filters(C* to, const Call& call, const Block& block, i64 t, i64 head, i64 heads) {
  const Numbers& f = call.filters[0];
  const i64 base = block.row * f.row + block.start * f.token + head * f.head, W = call.W;
  if (!call.reversed) return read<C>(to, f, base + t * f.token, f.tap, W, f.head, heads);
  const i64 first = std::max<i64>(0, call.left - t), last = std::min(W, block.length + call.left - t);
  const i64 diagonal = base + (t - call.left) * f.token + (W - 1) * f.tap, step = f.token - f.tap;
  if (first == 0 && last == W) return read<C>(to, f, diagonal, step, W, f.head, heads);
  std::fill_n(to, heads * W, C{});
  if (first < last)
    for (i64 h = 0; h < heads; ++h)
      read<C>(to + h * W + first, f, diagonal + h * f.head + first * step, step, last - first);
}

template <class I, class S> void convolve(const Call& call) {
  using C = Compute<S>;
  constexpr int L = LANES<C>;
  const i64 W = call.W, H = call.filters[0].heads, size = call.D / H;
  const bool whole = size % L == 0;  // heads: all lanes of a vector share a filter
  const Taps<C> taps(call, call.filters[1], call.reversed);
  for_blocks(call, call.D * W / L, [&](const Block& block) {
    const Finish<S> finish(call, block);
    const i64 count = block.tokens(), most = std::min<i64>(CHUNK, call.D) / size + 2;
    if (whole && reads_in_place(call, block)) {
      const Window<I> x(call, call.x, call.past, block, block.first - call.left, count + W - 1);
      const Numbers& f = call.filters[0];
      const bool lies = !call.reversed && f.dtype == dtype_of(C{}) && f.tap == 1 && (H == 1 || f.head == W);
      const C* const first = static_cast<const C*>(f.data) + block.row * f.row + (block.start + block.first) * f.token;
      Scratch<C> own(lies ? 0 : H * W);
      for (i64 t = 0; t < count; ++t) {
        if (!lies) fill_filters<C>(own, call, block, block.first + t, 0, H);
        const C* const filters = lies ? first + t * f.token : own;
        for (i64 h = 0; h < H; ++h)
          for_rows<1, 4, C>(1, h * size, (h + 1) * size, [&](auto, auto vectors, i64, i64 d) {
            Vec<C> z[vectors] = {};
            const auto input = [&](i64 w, int v) INLINE { return load(x.rows[t + w] + d + v * L); };
            for (i64 w = 0; w < W; ++w)
              each(vectors, [&](auto v) INLINE { z[v] += broadcast(filters[h * W + w]) * input(w, v); });
            if (taps.given)
              for (i64 w = 0; w < W; ++w)
                each(vectors, [&](auto v) INLINE { z[v] += taps.tap(taps.at(d + v * L), w) * input(w, v); });
            each(vectors, [&](auto v) INLINE { finish(z[v], block.first + t, d + v * L, L); });
          });
      }
      return;
    }
    Scratch<C> panel((count + W - 1) * CHUNK), own(most * count * W), spread(whole ? 0 : W * CHUNK);
    for (i64 d = 0; d < call.D; d += CHUNK) {
      const i64 n = std::min<i64>(CHUNK, call.D - d), head = d / size, heads = (d + n - 1) / size - head + 1;
      fill_panel<I, C>(panel, call, call.x, call.past, block, block.first - call.left, count + W - 1, d, n);
      for (i64 t = 0; t < count; ++t) fill_filters<C>(own + t * heads * W, call, block, block.first + t, head, heads);
      const auto tile = [&](auto tokens, auto vectors, i64 t, i64 c, const auto& add) INLINE {
        Vec<C> z[tokens][vectors] = {};
        add(z);
        if (taps.given)
          for (i64 w = 0; w < W; ++w)
            each(vectors, [&](auto v) INLINE {
              const Vec<C> s = taps.tap(taps.at(d + c + v * L), w);
              each(tokens, [&](auto a) INLINE { z[a][v] += s * load(panel + (t + a + w) * CHUNK + c + v * L); });
            });
        each(tokens, [&](auto a) INLINE {
          each(vectors, [&](auto v) INLINE { finish(z[a][v], block.first + t + a, d + c + v * L, n - c - v * L); });
        });
      };
      const auto tiles = [&](auto most) {
        for_tiles<4, most, C>(count, n, [&](auto tokens, auto vectors, i64 t, i64 c) {
          const C* filters[tokens];
          each(tokens, [&](auto a) INLINE { filters[a] = own + ((t + a) * heads + (d + c) / size - head) * W; });
          tile(tokens, vectors, t, c, [&](auto& z) INLINE { slide(z, panel + t * CHUNK + c, filters, W); });
        });
      };
      if (whole) {
        size % (WIDE * L) ? tiles(Constant<1>{}) : tiles(Constant<WIDE>{});
        continue;
      }
      for (i64 t = 0; t < count; ++t) {
        for (i64 h = 0; h < heads; ++h) {
          const i64 first = std::max(d, (head + h) * size) - d, last = std::min(d + n, (head + h + 1) * size) - d;
          for (i64 w = 0; w < W; ++w) fill_some(spread + w * CHUNK + first, own[(t * heads + h) * W + w], last - first);
        }
        for (i64 c = 0; c < n; c += L)
          tile(Constant<1>{}, Constant<1>{}, t, c, [&](auto& z) INLINE {
            for (i64 w = 0; w < W; ++w) z[0][0] += load(spread + w * CHUNK + c) * load(panel + (t + w) * CHUNK + c);
          });
      }
    }
  });
}

// out[t, h, w] = scale * sum of dz[t, d] * x[t + w - left, d] over the channels d of head h.
template <class Z, class S> void gradient(const Call& call) {
  using C = Compute<S>;
  constexpr int L = LANES<C>;
  const i64 W = call.W, H = call.filters[0].heads, size = call.D / H;
  C* const out = static_cast<C*>(call.at.out);
  const C scale = static_cast<C>(call.scale);
  for_blocks(call, call.D * W / L, [&](const Block& block) {
    const i64 count = block.tokens();
    const auto row_of = [&](i64 t, i64 h) { return out + ((block.row * call.T + block.start + block.first + t) * H + h) * W; };
    if (size < L) {  // a vector holds several heads
      const i64 heads = CHUNK / size;
      Scratch<C> x((count + W) * CHUNK), y(count * CHUNK);
      for (i64 h = 0; h < H; h += heads) {
        const i64 n = std::min(H - h, heads) * size;
        fill_panel<S, C>(x, call, call.x, call.past, block, block.first - call.left, count + W - 1, h * size, n);
        fill_panel<Z, C>(y, call, call.dz, {}, block, block.first, count, h * size, n);
        for (i64 t = 0; t < count; ++t)
          for (i64 w = 0; w < W; ++w) {
            C products[CHUNK];
            for (i64 c = 0; c < n; c += L) store(products + c, load(y + t * CHUNK + c) * load(x + (t + w) * CHUNK + c));
            for (i64 i = 0; i * size < n; ++i) {
              C total = 0;
              for (i64 c = i * size; c < (i + 1) * size; ++c) total += products[c];
              row_of(t, h + i)[w] = total * scale;
            }
          }
      }
      return;
    }
    if (W <= FEW) {
      const Window<S> x(call, call.x, call.past, block, block.first - call.left, count + W - 1);
      const Window<Z> y(call, call.dz, {}, block, block.first, count);
      for (i64 t = 0; t < count; ++t)
        for (i64 h = 0; h < H; ++h)
          for (i64 w = 0; w < W; ++w) {
            Vec<C> sum = {};
            for (i64 d = h * size; d < (h + 1) * size; d += L)
              sum += load_some(y.rows[t] + d, (h + 1) * size - d) * load_some(x.rows[t + w] + d, (h + 1) * size - d);
            row_of(t, h)[w] = sum_of<C, L>(sum) * scale;
          }
      return;
    }
    Scratch<C> x((count + W) * CHUNK), y(count * CHUNK);
    for (i64 h = 0; h < H; ++h)
      for (i64 d = 0; d < size; d += CHUNK) {
        const i64 n = std::min<i64>(CHUNK, size - d);
        fill_panel<S, C>(x, call, call.x, call.past, block, block.first - call.left, count + W - 1, h * size + d, n);
        fill_panel<Z, C>(y, call, call.dz, {}, block, block.first, count, h * size + d, n);
        for (i64 t = 0; t < count; ++t) {
          C* row = row_of(t, h);
          const auto dots = [&](auto taps, i64 w) {
            Vec<C> sum[taps] = {};
            for (i64 c = 0; c < n; c += L) {
              const Vec<C> g = load(y + t * CHUNK + c);
              each(taps, [&](auto a) INLINE { sum[a] += g * load(x + (t + w + a) * CHUNK + c); });
            }
            each(taps, [&](auto a) INLINE {
              row[w + a] = (d ? row[w + a] : C{}) + sum_of<C, L>(sum[a]) * scale;
            });
          };
          i64 w = 0;
          for (; w + 8 <= W; w += 8) dots(Constant<8>{}, w);
          for (; w + 4 <= W; w += 4) dots(Constant<4>{}, w);
          for (; w < W; ++w) dots(Constant<1>{}, w);
        }
      }
  });
}

}  // namespace
}  // namespace dynaconv

using namespace dynaconv;

EXPORT int32_t dynaconv_dynamic(const Plan* plan, const Places* at) {
  return operate(plan, at, [](const Call& call, auto i, auto s) { convolve<decltype(i), decltype(s)>(call); });
}

EXPORT int32_t dynaconv_dynamic_gradient(const Plan* plan, const Places* at) {
  return operate(plan, at, [](const Call& call, auto z, auto s) { gradient<decltype(z), decltype(s)>(call); });
}
