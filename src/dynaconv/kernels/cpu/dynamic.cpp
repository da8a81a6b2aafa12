// Depthwise convolution with a filter of its own for every token and head, and static taps [W, D] added to them:
//
//   sum[t, d] = sum_w (f[t, d / C, w] + taps[w, d]) * x[t + w - left, d]
//
// The gradient of x is the same sum over the gradient dz of the sum, with filters read along a diagonal,
//   dx[s, d] = sum_v (f[t, d / C, W - 1 - v] + taps[W - 1 - v, d]) * dz[t, d],  t = s + v - (W - 1 - left).
#include "tiles.h"

namespace dynaconv {
namespace {

struct Filters {
  Numbers own, taps;
  i64 H, static_heads;
  bool reversed;
};

// The filter that output t of a block has for each row of its window, [W]; 0 where the row is of another sequence.
template <class C> void fill_filter(C* filter, const Call& call, const Filters& f, const Block& block, i64 t, i64 h) {
  const i64 base = block.row * f.own.row + block.start * f.own.token + h * f.own.head;
  if (!f.reversed) return read<C>(filter, f.own, base + t * f.own.token, f.own.tap, call.W);
  const i64 first = std::max<i64>(0, call.left - t), last = std::min(call.W, block.length + call.left - t);
  std::fill_n(filter, call.W, C{});
  if (first < last)
    read<C>(filter + first, f.own, base + (t - call.left + first) * f.own.token + (call.W - 1 - first) * f.own.tap,
            f.own.token - f.own.tap, last - first);
}

template <class I, class S> void convolve(const Call& call, const Filters& f) {
  using C = Compute<S>;
  constexpr int L = LANES<C>;
  const i64 stride = (call.D + L - 1) / L * L, W = call.W, size = call.D / f.H;
  const bool whole = size % L == 0;  // heads: all lanes of a vector share a filter
  Scratch<C> taps(f.taps.data ? W * stride : 0);
  if (f.taps.data) fill_taps<C>(taps, f.taps, f.static_heads, call, stride, f.reversed);
  for_blocks(call, call.D * W / L, [&](const Block& block) {
    const i64 count = block.tokens(), most = std::min<i64>(CHUNK, call.D) / size + 2;
    if (W <= FEW && whole) {
      const Window<I> x(call, call.x, call.past, block, block.first - call.left, count + W - 1);
      C filter[FEW];
      for (i64 t = 0; t < count; ++t)
        for (i64 h = 0; h < f.H; ++h) {
          fill_filter<C>(filter, call, f, block, block.first + t, h);
          for (i64 d = h * size; d < (h + 1) * size; d += L) {
            Vec<C> z = {};
            for (i64 w = 0; w < W; ++w) {
              const Vec<C> s = f.taps.data ? load(taps + w * stride + d) : Vec<C>{};
              z += (s + filter[w]) * load(x.rows[t + w] + d);
            }
            finish<S>(call, z, block, block.first + t, d, L);
          }
        }
      return;
    }
    Scratch<C> panel((count + W - 1) * CHUNK), own(most * count * W), spread(whole ? 0 : W * CHUNK);
    for (i64 d = 0; d < call.D; d += CHUNK) {
      const i64 n = std::min<i64>(CHUNK, call.D - d), head = d / size, heads = (d + n - 1) / size - head + 1;
      fill_panel<I, C>(panel, call, call.x, call.past, block, block.first - call.left, count + W - 1, d, n);
      for (i64 h = 0; h < heads; ++h)
        for (i64 t = 0; t < count; ++t)
          fill_filter<C>(own + (h * count + t) * W, call, f, block, block.first + t, head + h);
      const auto tile = [&](auto tokens, auto vectors, i64 t, i64 c, const auto& filter) {
        Vec<C> z[tokens][vectors] = {};
        for (i64 w = 0; w < W; ++w)
          for (int v = 0; v < vectors; ++v) {
            const Vec<C> s = f.taps.data ? load(taps + w * stride + d + c + v * L) : Vec<C>{};
            for (int a = 0; a < tokens; ++a)
              z[a][v] += (s + filter(a, v, w)) * load(panel + (t + a + w) * CHUNK + c + v * L);
          }
        for (int a = 0; a < tokens; ++a)
          for (int v = 0; v < vectors; ++v)
            finish<S>(call, z[a][v], block, block.first + t + a, d + c + v * L, n - c - v * L);
      };
      if (whole) {
        for_tiles<2, 4, C>(count, n, [&](auto tokens, auto vectors, i64 t, i64 c) {
          const C* filters[vectors];
          for (int v = 0; v < vectors; ++v) filters[v] = own + (((d + c + v * L) / size - head) * count + t) * W;
          tile(tokens, vectors, t, c, [&](int a, int v, i64 w) { return Vec<C>{} + filters[v][a * W + w]; });
        });
        continue;
      }
      for (i64 t = 0; t < count; ++t) {
        for (i64 w = 0; w < W; ++w)
          for (i64 c = 0; c < n; ++c) spread[w * CHUNK + c] = own[(((d + c) / size - head) * count + t) * W + w];
        for (i64 c = 0; c < n; c += L)
          tile(Constant<1>{}, Constant<1>{}, t, c, [&](int, int, i64 w) { return load(spread + w * CHUNK + c); });
      }
    }
  });
}

// out[t, h, w] = scale * sum of dz[t, d] * x[t + w - left, d] over the channels d of head h.
template <class Z, class S> void gradient(const Call& call, const Rows& dz, Compute<S>* out, i64 H) {
  using C = Compute<S>;
  constexpr int L = LANES<C>;
  const i64 W = call.W, size = call.D / H;
  for_blocks(call, call.D * W / L, [&](const Block& block) {
    const i64 count = block.tokens();
    if (W <= FEW) {
      const Window<S> x(call, call.x, call.past, block, block.first - call.left, count + W - 1);
      const Window<Z> y(call, dz, {}, block, block.first, count);
      for (i64 t = 0; t < count; ++t)
        for (i64 h = 0; h < H; ++h)
          for (i64 w = 0; w < W; ++w) {
            Vec<C> sum = {};
            for (i64 d = h * size; d < (h + 1) * size; d += L)
              sum += load_some(y.rows[t] + d, (h + 1) * size - d) * load_some(x.rows[t + w] + d, (h + 1) * size - d);
            C total = 0;
            for (int lane = 0; lane < L; ++lane) total += sum[lane];
            out[((block.row * call.T + block.start + block.first + t) * H + h) * W + w] = total * static_cast<C>(call.scale);
          }
      return;
    }
    Scratch<C> x((count + W) * CHUNK), y(count * CHUNK);
    for (i64 h = 0; h < H; ++h)
      for (i64 d = 0; d < size; d += CHUNK) {
        const i64 n = std::min<i64>(CHUNK, size - d);
        fill_panel<S, C>(x, call, call.x, call.past, block, block.first - call.left, count + W - 1, h * size + d, n);
        fill_panel<Z, C>(y, call, dz, {}, block, block.first, count, h * size + d, n);
        for (i64 t = 0; t < count; ++t) {
          C* row = out + ((block.row * call.T + block.start + block.first + t) * H + h) * W;
          const auto dots = [&](auto taps, i64 w) {
            Vec<C> sum[taps] = {};
            for (i64 c = 0; c < n; c += L)
              for (int a = 0; a < taps; ++a) sum[a] += load(y + t * CHUNK + c) * load(x + (t + w + a) * CHUNK + c);
            for (int a = 0; a < taps; ++a) {
              C total = d ? row[w + a] : C{};
              for (int lane = 0; lane < L; ++lane) total += sum[a][lane] * static_cast<C>(call.scale);
              row[w + a] = total;
            }
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

EXPORT void dynaconv_dynamic(const Call* call, const Numbers* own, const Numbers* taps, i64 H, i64 static_heads,
                                 i64 input, i64 output, i64 reversed) {
  const Filters filters{*own, *taps, H, static_heads, reversed != 0};
  dispatch(input, output, [&](auto i, auto s) { convolve<decltype(i), decltype(s)>(*call, filters); });
  move_on(*call);
}

EXPORT void dynaconv_dynamic_gradient(const Call* call, const Rows* dz, void* out, i64 H, i64 input, i64 output) {
  dispatch(input, output, [&](auto z, auto s) {
    using S = decltype(s);
    gradient<decltype(z), S>(*call, *dz, static_cast<Compute<S>*>(out), H);
  });
}
