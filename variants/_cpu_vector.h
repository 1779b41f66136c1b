// Sixteen floats at a time, in the vector extensions of GCC and clang: no intrinsics, so any instruction set will do.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

using index_t = int64_t;

constexpr int LANES = 16;
typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef float vec_at __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

constexpr float MINUS_INF = -std::numeric_limits<float>::infinity();

static inline vec load(const float* x) { return *(const vec_at*)x; }
static inline void store(float* x, vec v) { *(vec_at*)x = v; }
static inline vec splat(float x) { return x - vec{}; }
static inline index_t round_up(index_t n, index_t to) { return (n + to - 1) / to * to; }

static const ivec LANE = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

// All ones in the first n lanes.
static inline ivec first_lanes(index_t n) { return LANE < (ivec{} + (int32_t)n); }

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
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (ivec){__VA_ARGS__})
#endif

// x[i][j] <-> x[j][i], by exchanging off-diagonal blocks of 8, 4, 2 and 1.
static inline void transpose(vec x[LANES]) {
#define EXCHANGE(step, i, low, high)                        \
  {                                                         \
    vec a = x[i], b = x[i + step];                          \
    x[i] = SHUFFLE(a, b, low);                              \
    x[i + step] = SHUFFLE(a, b, high);                      \
  }
#define LOW8 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23
#define HIGH8 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31
#define LOW4 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27
#define HIGH4 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31
#define LOW2 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29
#define HIGH2 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31
#define LOW1 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30
#define HIGH1 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31
#pragma GCC unroll 16
  for (int i = 0; i < 8; ++i) EXCHANGE(8, i, LOW8, HIGH8)
#pragma GCC unroll 16
  for (int i = 0; i < 8; ++i) EXCHANGE(4, (i & 4) * 2 + (i & 3), LOW4, HIGH4)
#pragma GCC unroll 16
  for (int i = 0; i < 8; ++i) EXCHANGE(2, (i & 6) * 2 + (i & 1), LOW2, HIGH2)
#pragma GCC unroll 16
  for (int i = 0; i < 8; ++i) EXCHANGE(1, i * 2, LOW1, HIGH1)
#undef EXCHANGE
}
