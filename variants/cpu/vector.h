// One register of floats at a time, in the vector extensions of GCC and clang: no intrinsics, so any processor will do.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

using index_t = int64_t;

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef float vec_at __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

constexpr float MINUS_INF = -std::numeric_limits<float>::infinity();

static inline vec load(const float* x) { return *(const vec_at*)x; }
static inline void store(float* x, vec v) { *(vec_at*)x = v; }
static inline vec splat(float x) { return x - vec{}; }
static inline index_t round_up(index_t n, index_t to) { return (n + to - 1) / to * to; }

template <int... I>
static inline ivec lane_numbers(std::integer_sequence<int, I...>) {
  return ivec{I...};
}

// All ones in the first n lanes.
static inline ivec first_lanes(index_t n) {
  return lane_numbers(std::make_integer_sequence<int, LANES>()) < (ivec{} + (int32_t)n);
}

static inline vec larger(vec a, vec b) { return b > a ? b : a; }  // a where b is NaN

static inline float sum(vec v) {
  float s[LANES];
  store(s, v);
  for (int step = LANES / 2; step; step /= 2)
    for (int i = 0; i < step; ++i) s[i] += s[i + step];
  return s[0];
}

static inline float largest(vec v) {
  float s[LANES];
  store(s, v);
  float m = s[0];
  for (int i = 1; i < LANES; ++i) m = std::max(m, s[i]);
  return m;
}

// 2^x for x <= 0 or so: exactly 0 below 2^-126, NaN for NaN. Taylor's series on [-1/2, 1/2]: 1 ulp.
static inline vec exp2v(vec x) {
  const vec rounder = splat(12582912.f);  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  vec clamped = x < -126.f ? splat(-126.f) : x;
  vec shifted = clamped + rounder;
  vec f = clamped - (shifted - rounder);
  vec y = splat(1.5252734e-5f);
  y = y * f + 1.5403530e-4f;
  y = y * f + 1.3333558e-3f;
  y = y * f + 9.6181291e-3f;
  y = y * f + 5.5504109e-2f;
  y = y * f + 2.4022651e-1f;
  y = y * f + 6.9314718e-1f;
  y = y * f + 1.f;
  ivec power = (ivec)shifted << 23;
  vec scaled = (vec)((ivec)y + power);
  scaled = x == x ? scaled : x;
  return x < -126.f ? vec{} : scaled;
}

#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, ivec{__VA_ARGS__})
#endif

// Of two rows that are `STEP` apart: exchange the lanes of a with bit STEP set and those of b without it.
template <int STEP, int... I>
static inline void exchange(vec& a, vec& b, std::integer_sequence<int, I...>) {
  vec low = SHUFFLE(a, b, (I & STEP ? LANES + I - STEP : I)...);
  b = SHUFFLE(a, b, (I & STEP ? LANES + I : I + STEP)...);
  a = low;
}

// x[i][j] <-> x[j][i], by exchanging off-diagonal blocks of half the lanes, a quarter, ... 1.
template <int STEP = LANES / 2>
static inline void transpose(vec* x) {
#pragma GCC unroll 16
  for (int i = 0; i < LANES / 2; ++i) {
    vec* row = x + i / STEP * 2 * STEP + i % STEP;
    exchange<STEP>(row[0], row[STEP], std::make_integer_sequence<int, LANES>());
  }
  if constexpr (STEP > 1) transpose<STEP / 2>(x);
}
