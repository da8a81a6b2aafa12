// Vectors of compute numbers (float or double), and how tensors of every dtype are read into and written from them.
#pragma once
#include <cstdint>
#include <cstring>

namespace dynaconv {

#if defined(__AVX512F__)
constexpr int BYTES = 64;
#elif defined(__AVX__)
constexpr int BYTES = 32;
#else
constexpr int BYTES = 16;
#endif

struct bf16 { uint16_t bits; };
struct fp16 { uint16_t bits; };

template <class S> struct Dtype { using Compute = float; };
template <> struct Dtype<double> { using Compute = double; };
template <class S> using Compute = typename Dtype<S>::Compute;

template <class C> constexpr int LANES = BYTES / sizeof(C);
template <class T, int N> struct VectorOf {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
};
template <class C> using Vec = typename VectorOf<C, LANES<C>>::type;

using Float = Vec<float>;
using Word = VectorOf<uint32_t, LANES<float>>::type;
using Half = VectorOf<uint16_t, LANES<float>>::type;

template <class To, class From> inline To bits_as(From value) {
  static_assert(sizeof(To) == sizeof(From), "the same bits");
  To result;
  std::memcpy(&result, &value, sizeof result);
  return result;
}

// 16-bit numbers are widened and rounded (to nearest, ties to even) by integer arithmetic: the same on every processor.
inline Float widen(const bf16*, Half h) {
  return bits_as<Float>(__builtin_convertvector(h, Word) << 16);
}
inline Float widen(const fp16*, Half h) {
  const Word bits = __builtin_convertvector(h, Word), magnitude = (bits & 0x7fffu) << 13;
  const Float scaled = bits_as<Float>(magnitude) * 0x1p112f;  // also subnormal numbers
  const Word special = (Word)(magnitude >= 0x0f800000u);      // infinity and NaN
  const Word result = (bits_as<Word>(scaled) & ~special) | ((magnitude | 0x7f800000u) & special);
  return bits_as<Float>(result | (bits & 0x8000u) << 16);
}
inline Half narrow(const bf16*, Float f) {
  const Word bits = bits_as<Word>(f), nan = (Word)(f != f);
  const Word rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  return __builtin_convertvector((rounded & ~nan) | (0x7fc0u & nan), Half);
}
inline Half narrow(const fp16*, Float f) {
  const Word bits = bits_as<Word>(f), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  const Word nan = (Word)(magnitude > 0x7f800000u), large = (Word)(magnitude >= 0x477ff000u);
  const Word small = (Word)(magnitude < 0x38800000u);
  // Adding 0.5 leaves the subnormal result, rounded, in the last bits.
  const Word subnormal = bits_as<Word>(bits_as<Float>(magnitude) + 0.5f) - 0x3f000000u;
  const Word normal = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  Word result = (normal & ~small) | (subnormal & small);
  result = (result & ~large) | (0x7c00u & large & ~nan) | (0x7e00u & nan);
  return __builtin_convertvector(result | sign, Half);
}

inline Float widen(const float*, Float f) { return f; }
inline Vec<double> widen(const double*, Vec<double> f) { return f; }
inline Float narrow(const float*, Float f) { return f; }
inline Vec<double> narrow(const double*, Vec<double> f) { return f; }

// `count` numbers at p as they are computed with, the other lanes 0.
template <class S> inline Vec<Compute<S>> load(const S* p, int64_t count) {
  decltype(narrow(p, Vec<Compute<S>>{})) v = {};
  std::memcpy(&v, p, count * sizeof(S));
  return widen(p, v);
}
template <class S> inline Vec<Compute<S>> load(const S* p) { return load(p, LANES<Compute<S>>); }

template <class S> inline void store(S* p, Vec<Compute<S>> v, int64_t count) {
  const auto narrowed = narrow(p, v);
  std::memcpy(p, &narrowed, count * sizeof(S));
}
template <class S> inline void store(S* p, Vec<Compute<S>> v) { store(p, v, LANES<Compute<S>>); }

// All lanes the same; what is subtracted is nothing, also from -0.
template <class C> inline Vec<C> broadcast(C value) { return value - Vec<C>{}; }

// The sum of all lanes, half added to half.
template <class C, int N> inline C sum_of(typename VectorOf<C, N>::type v) {
  if constexpr (N == 2) {
    return v[0] + v[1];
  } else {
    typename VectorOf<C, N / 2>::type halves[2];
    std::memcpy(halves, &v, sizeof v);
    return sum_of<C, N / 2>(halves[0] + halves[1]);
  }
}

template <class S> inline Compute<S> scalar(const S* p) {
  if constexpr (sizeof(S) > 2) return *p;
  else return load(p, 1)[0];
}

}  // namespace dynaconv
