// LayerNorm and projection of pairs, LANES slots of a row at a time.
#pragma once

#include "tiles.h"

static inline float widen(uint16_t x) {
  uint32_t bits = (uint32_t)x << 16;
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}
static inline float widen(float x) { return x; }

static inline void narrow(float x, float* to) { *to = x; }
static inline void narrow(float x, uint16_t* to) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  *to = x == x ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : 0x7fc0;
}

constexpr index_t AHEAD = 16 << 10;  // prefetch distance in bytes of p: the processor's own prefetch stops at page ends

constexpr int CHANNELS = 16;  // the usual number has code of its own, which keeps pairs in registers

// Slots by channel: x[c] becomes channel c of LANES slots, 0 beyond `count`.
// C: the channels where the compiler may know them, so that x stays in registers; else 0.
template <int C, class T>
static inline void read_slots(const T* p, index_t count, index_t channels, vec* x) {
  if constexpr (C == CHANNELS && sizeof(T) == sizeof(float)) {
    float padded[LANES * CHANNELS];
    const float* from = p;
    if (count < LANES) {
      std::memset(padded, 0, sizeof padded);
      std::memcpy(padded, p, count * CHANNELS * sizeof(float));
      from = padded;
    }
#pragma GCC unroll 16
    for (int part = 0; part < CHANNELS; part += LANES) {
#pragma GCC unroll 16
      for (int j = 0; j < LANES; ++j) x[part + j] = load(from + j * CHANNELS + part);
      transpose(x + part);
    }
#pragma GCC unroll 16
    for (int j = 0; j < LANES; ++j) __builtin_prefetch((const char*)(p + j * CHANNELS) + AHEAD);
  } else {
    for (index_t c = 0; c < channels; ++c) {
      float at[LANES] = {};
      for (index_t j = 0; j < std::min<index_t>(count, LANES); ++j) at[j] = widen(p[j * channels + c]);
      x[c] = load(at);
    }
  }
}

// x less its mean over the channels, that mean, and 1/√(variance + ε), NaN where the variance overflows: 0 would be a
// bias of 0. Four partial sums each, so that no addition waits for the one before.
template <int C>
static inline void normalise(vec* x, index_t channels, float eps, vec& mean, vec& rstd) {
  const index_t n = C ? C : channels;
  vec total[4] = {}, square[4] = {};
#pragma GCC unroll 16
  for (index_t c = 0; c < n; ++c) total[c % 4] += x[c];
  mean = ((total[0] + total[1]) + (total[2] + total[3])) * (1.f / n);
#pragma GCC unroll 16
  for (index_t c = 0; c < n; ++c) {
    x[c] -= mean;
    square[c % 4] += x[c] * x[c];
  }
  vec variance = ((square[0] + square[1]) + (square[2] + square[3])) * (1.f / n) + eps;
#pragma GCC unroll 16
  for (int j = 0; j < LANES; ++j) rstd[j] = std::sqrt(variance[j]) / variance[j];
}

template <int C>
static inline vec project(const vec* x, const float* weight, index_t channels) {
  const index_t n = C ? C : channels;
  vec even = {}, odd = {};
  index_t c = 0;
#pragma GCC unroll 16
  for (; c + 1 < n; c += 2) {
    even += x[c] * weight[c];
    odd += x[c + 1] * weight[c + 1];
  }
  if (c < n) even += x[c] * weight[c];
  return even + odd;
}

// Which of LANES slots are live: the first `count`, and of those the mask's.
static inline ivec live_slots(const uint8_t* mask, index_t count) {
  ivec live = first_lanes(count);
  if (mask) {
    int32_t set[LANES] = {};
    for (index_t j = 0; j < std::min<index_t>(count, LANES); ++j) set[j] = mask[j] ? -1 : 0;
    ivec m;
    std::memcpy(&m, set, sizeof m);
    live &= m;
  }
  return live;
}

// scores[h][row − first][atom − origin] = scale · bias of every slot inside the hull, −inf where it is dead; up to
// LANES − 1 columns behind the hull are −inf too. weight is scaled already.
template <int C, class T>
static inline void bias_of_row(const Call& c, const T* p, const uint8_t* mask, index_t row, const float* weight,
                               float* scores, index_t head_stride, vec* scratch) {
  index_t slot = c.start[row] - c.base[row], end = c.stop[row] - c.base[row];
  for (; slot < end; slot += LANES, scores += LANES) {
    vec known[C ? C : 1];
    vec *x = C ? known : scratch, mean, rstd;
    read_slots<C>(p + slot * c.channels, end - slot, c.channels, x);
    normalise<C>(x, c.channels, c.eps, mean, rstd);
    ivec live = live_slots(mask ? mask + slot : nullptr, end - slot);
    for (index_t h = 0; h < c.heads; ++h) {
      vec bias = project<C>(x, weight + h * c.channels, c.channels) * rstd;
      store(scores + h * head_stride, live ? bias : splat(MINUS_INF));
    }
  }
}
