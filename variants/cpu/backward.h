// Gradients of the forward pass, every tile's weights A recomputed:
//
//   dV = Aᵀ·dO,  dS = A ⊙ (dO·Vᵀ − δ) with δ = <dO, O>,  dQ = dS·K/√D,  dK = dSᵀ·Q/√D
//   dp = rstd·Wᵀ·dS − u·(p − mean) with u = rstd²·<dS, bias>/C,  moment = Σ dS · rstd·(p − mean)
//
// Where samples share p, their dS are added up first: p is read once and dp written once for all of them.
// Each thread sums dK and dV of its rows in a fixed order; the threads' sums are added last.
#pragma once

#include <vector>

#include "forward.h"

constexpr float LN_2 = 0.693147181f;

// One thread's scratch beside the forward's, and its sums.
struct BackwardScratch : Scratch {
  float *grads, *delta, *scaled;  // [H, TILE, Dp], [H, TILE], [H, LANES] of dS·rstd
  float *total;                   // [H, TILE, stride]: Σ dS over samples; the scores where there is one
  float *moment, *dk, *dv;        // [H, C, LANES], lanes still apart, then [keys, H, span + SUM_ROWS, Dp] twice

  static index_t floats(const Call& c) {
    return Scratch::floats(c) + c.heads * TILE * padded_dim(c) + round_up(c.heads * TILE, LANES) +
           c.heads * (1 + c.channels) * LANES + (c.samples > 1 ? c.heads * TILE * score_stride(c) : 0);
  }

  BackwardScratch(const Call& c, float* work, index_t sums) : Scratch(c, work) {
    work += Scratch::floats(c);
    grads = work, work += c.heads * TILE * padded_dim(c);
    delta = work, work += round_up(c.heads * TILE, LANES);
    scaled = work, work += c.heads * LANES;
    total = scores;
    if (c.samples > 1) total = work, work += c.heads * TILE * score_stride(c);
    moment = work, work += c.heads * c.channels * LANES;
    dk = work, dv = work + sums;
    std::fill(moment, dv + sums, 0.f);
  }
};

// One row of scores in columns [from, to) becomes A = 2^(s − lse).
static inline void weights_of_row(float* row, index_t from, index_t to, float lse) {
  for (index_t j = from; j < to; j += LANES) store(row + j, exp2v(load(row + j) - lse));
}

// LANES slots of a row: writes dS·rstd by head to `scaled`, 0 in dead slots; returns u, and x centred with its mean.
template <int C, class T>
static inline vec pair_factors(const Call& c, const T* p, index_t count, ivec live, const float* ds,
                               index_t head_stride, const float* weight, float* scaled, vec* x, vec& mean) {
  vec rstd, t = {};
  read_slots<C>(p, count, c.channels, x);
  normalise<C>(x, c.channels, c.eps, mean, rstd);
  for (index_t h = 0; h < c.heads; ++h) {
    vec g = load(ds + h * head_stride) * rstd;
    t += g * project<C>(x, weight + h * c.channels, c.channels);
    store(scaled + h * LANES, live ? g : vec{});
  }
  return t * rstd * rstd * (1.f / c.channels);
}

// dp and the moment of LANES slots, slot by slot: a slot's channels are VECS vectors, and so is a row of W.
// H: the heads, where the compiler may know them; else 0.
template <int H>
static inline void pair_gradient(const Call& c, const float* p, const uint8_t* mask, index_t count,
                                 const float* weight, const float* scaled, vec u, vec mean, float* dp, float* moment) {
  constexpr int VECS = CHANNELS / LANES, HEAD = CHANNELS * LANES;
  const index_t heads = H ? H : c.heads;
  float shift[LANES], centre[LANES];
  store(shift, u), store(centre, mean);
  vec w[H ? H : 1][VECS], sums[H ? H : 1][VECS];
#pragma GCC unroll 8
  for (int h = 0; h < H; ++h)
#pragma GCC unroll 4
    for (int v = 0; v < VECS; ++v) {
      w[h][v] = load(weight + h * CHANNELS + v * LANES);
      sums[h][v] = load(moment + h * HEAD + v * LANES);
    }
  for (index_t j = 0; j < std::min<index_t>(count, LANES); ++j) {
    if (mask && !mask[j]) {
      if (dp && !c.adds_dp) std::fill(dp + j * CHANNELS, dp + (j + 1) * CHANNELS, 0.f);
      continue;
    }
#pragma GCC unroll 4
    for (int v = 0; v < VECS; ++v) {
      vec x = load(p + j * CHANNELS + v * LANES) - centre[j], dx = -shift[j] * x;
#pragma GCC unroll 8
      for (index_t h = 0; h < heads; ++h) {
        float g = scaled[h * LANES + j], *sum = moment + h * HEAD + v * LANES;
        dx += g * (H ? w[h][v] : load(weight + h * CHANNELS + v * LANES));
        if (H) sums[h][v] += g * x;
        else store(sum, load(sum) + g * x);
      }
      float* to = dp + j * CHANNELS + v * LANES;
      if (dp) store(to, c.adds_dp ? load(to) + dx : dx);
    }
  }
#pragma GCC unroll 8
  for (int h = 0; h < H; ++h)
#pragma GCC unroll 4
    for (int v = 0; v < VECS; ++v) store(moment + h * HEAD + v * LANES, sums[h][v]);
}

// The same channel by channel, for any number of channels and any type of pair.
template <class T>
static inline void pair_gradient_by_channel(const Call& c, ivec live, index_t count, const float* weight,
                                            const float* scaled, vec u, const vec* x, T* dp, float* moment) {
  for (index_t channel = 0; channel < c.channels; ++channel) {
    vec centred = live ? x[channel] : vec{}, dx = -u * x[channel];
    for (index_t h = 0; h < c.heads; ++h) {
      float* to = moment + (h * c.channels + channel) * LANES;
      vec g = load(scaled + h * LANES);
      store(to, load(to) + g * centred);
      dx += g * weight[h * c.channels + channel];
    }
    float out[LANES];
    store(out, live ? dx : vec{});
    for (index_t j = 0; dp && j < std::min<index_t>(count, LANES); ++j) {
      T* to = dp + j * c.channels + channel;
      narrow(c.adds_dp ? widen(*to) + out[j] : out[j], to);
    }
  }
}

// dp of one row, its padding too, and the row's part of the moment; ds is at the row's first live column.
template <int C, class T>
static void pair_row(const Call& c, index_t entry, index_t row, const float* ds, index_t head_stride, const float* weight,
                     const BackwardScratch& s) {
  index_t slot = c.start[row] - c.base[row], end = c.stop[row] - c.base[row];
  const T* p = (const T*)c.p + pair_at(c, c.pair_items, entry, row) * c.channels;
  T* dp = c.dp ? (T*)c.dp + pair_at(c, c.entries, entry, row) * c.channels : nullptr;
  const uint8_t* mask = mask_of_row(c, entry, row);
  if (dp && !c.adds_dp) {
    std::fill(dp, dp + slot * c.channels, T{});
    std::fill(dp + end * c.channels, dp + c.slots * c.channels, T{});
  }
  for (; slot < end; slot += LANES, ds += LANES) {
    vec known[C ? C : 1] = {};
    vec *x = C ? known : s.pairs, mean;
    const T* from = p + slot * c.channels;
    const uint8_t* set = mask ? mask + slot : nullptr;
    ivec live = live_slots(set, end - slot);
    vec u = pair_factors<C>(c, from, end - slot, live, ds, head_stride, weight, s.scaled, x, mean);
    T* to = dp ? dp + slot * c.channels : nullptr;
    if constexpr (C == CHANNELS && sizeof(T) == sizeof(float)) {
      if (c.heads == 4) pair_gradient<4>(c, from, set, end - slot, weight, s.scaled, u, mean, to, s.moment);
      else pair_gradient<0>(c, from, set, end - slot, weight, s.scaled, u, mean, to, s.moment);
    } else {
      pair_gradient_by_channel(c, live, end - slot, weight, s.scaled, u, x, to, s.moment);
    }
  }
}

struct BackwardWork {
  float *weight, *scaled_weight, *key_columns, *value_columns, *keys, *scratch;

  static index_t shared_floats(const Call& c) {
    return 2 * round_up(c.heads * c.channels, LANES) + c.keys * (2 * column_floats(c) + row_floats(c));
  }

  explicit BackwardWork(const Call& c) {
    index_t columns = c.keys * column_floats(c);
    weight = c.work;
    scaled_weight = weight + round_up(c.heads * c.channels, LANES);
    key_columns = scaled_weight + round_up(c.heads * c.channels, LANES);
    value_columns = key_columns + columns;
    keys = value_columns + columns;
    scratch = keys + c.keys * row_floats(c);
  }
};

// A of one head of item b, which uses K and V number `key` of its entry; then dV, dS in A's place, dQ and dK.
static void backward_head(const Call& c, index_t b, index_t key, index_t h, const Tile& t, const Chunk& chunk,
                          const BackwardWork& w, const BackwardScratch& s) {
  index_t stride = score_stride(c), width = padded_dim(c), head_columns = key_blocks(c) * c.dim * LANES;
  float *scores = s.scores + h * TILE * stride, *queries = s.queries + h * TILE * width;
  float *grads = s.grads + h * TILE * width, *delta = s.delta + h * TILE;
  const float* key_columns = w.key_columns + key * column_floats(c) + h * head_columns;
  scores_of_head(c, b, t, queries, key_columns, s.bias + h * TILE * stride, scores);
  for (index_t r = 0; r < TILE; ++r) {
    index_t row = t.first + r, from = 0, to = 0;
    if (r < t.rows() && !dead(c, row)) {
      from = c.start[row] - t.origin(), to = c.stop[row] - t.origin();
      weights_of_row(scores + r * stride, from, to, c.lse[(b * c.heads + h) * c.atoms + row]);
    }
    clear_outside(scores + r * stride, from, to, t.columns());
  }
  index_t sums_at = key * chunk.sum_floats(c) + (h * (chunk.span() + SUM_ROWS) + t.origin() - chunk.lo) * width;
  index_t columns = round_up(t.columns(), SUM_ROWS);
  sum_product(scores, 1, stride, grads, width, t.rows(), s.dv + sums_at, columns, true);
  auto to_ds = [&](index_t r, index_t column, vec product) {
    float* at = scores + r * stride + column;
    store(at, load(at) * (product - delta[r]));
  };
  const float* values = w.value_columns + key * column_floats(c) + h * head_columns + t.origin() * c.dim;
  score_product(grads, width, values, t.rows(), t.columns(), c.dim, to_ds);
  const float* keys = w.keys + key * row_floats(c) + (h * c.atoms + t.origin()) * width;
  sum_product(scores, stride, 1, keys, width, t.columns(), s.sums, t.rows(), false);
  for (index_t r = 0; r < t.rows(); ++r) {
    float* to = c.dq + ((b * c.atoms + t.first + r) * c.heads + h) * c.dim;
    for (index_t d = 0; d < c.dim; ++d) to[d] = s.sums[r * width + d] / std::sqrt((float)c.dim);
  }
  sum_product(scores, 1, stride, queries, width, t.rows(), s.dk + sums_at, columns, true);
}

template <class T>
static void clear_dead_row(const Call& c, index_t entry, index_t row) {
  for (index_t b = entry * c.samples; b < (entry + 1) * c.samples; ++b) {
    index_t at = b * c.atoms + row;
    std::fill(c.dq + at * c.heads * c.dim, c.dq + (at + 1) * c.heads * c.dim, 0.f);
  }
  index_t at = entry * c.atoms + row;
  T* dp = (T*)c.dp;
  if (dp && !c.adds_dp) std::fill(dp + at * c.slots * c.channels, dp + (at + 1) * c.slots * c.channels, T{});
}

// total (+)= dS of one sample, in the columns that its rows have.
static void add_to_total(const Call& c, const Tile& t, const BackwardScratch& s, bool first) {
  index_t stride = score_stride(c), columns = round_up(t.columns(), LANES);
  for (index_t h = 0; h < c.heads; ++h)
    for (index_t r = 0; r < t.rows(); ++r) {
      index_t at = (h * TILE + r) * stride;
      for (index_t j = at; j < at + columns; j += LANES)
        store(s.total + j, first ? load(s.scores + j) : load(s.total + j) + load(s.scores + j));
    }
}

// One sample of a tile, from its bias: leaves dS where the scores were.
static void backward_sample(const Call& c, index_t b, index_t key, const Tile& t, const Chunk& chunk,
                            const BackwardWork& w, const BackwardScratch& s) {
  take_rows(c, b, t, c.q, LOG2_E / std::sqrt((float)c.dim), s.queries);
  take_rows(c, b, t, c.grad, 1.f, s.grads);
  std::fill(s.delta, s.delta + c.heads * TILE, 0.f);
  for (index_t r = 0; r < t.rows(); ++r)
    for (index_t h = 0; h < c.heads; ++h) {
      const float* at = c.out + ((b * c.atoms + t.first + r) * c.heads + h) * c.dim;
      const float* grad = s.grads + (h * TILE + r) * padded_dim(c);
      for (index_t d = 0; d < c.dim; ++d) s.delta[h * TILE + r] += at[d] * grad[d];
    }
  for (index_t h = 0; h < c.heads; ++h) backward_head(c, b, key, h, t, chunk, w, s);
}

template <int C, class T>
static void backward_tile(const Call& c, index_t entry, const Tile& t, const Chunk& chunk, const BackwardWork& w,
                          const BackwardScratch& s) {
  index_t stride = score_stride(c);
  bias_of_tile<C, T>(c, entry, t, w.scaled_weight, s);
  for (index_t i = 0; i < c.samples; ++i) {
    backward_sample(c, entry * c.samples + i, c.keys == 1 ? 0 : i, t, chunk, w, s);
    if (c.samples > 1) add_to_total(c, t, s, i == 0);
  }
  for (index_t row = t.first; row < t.stop; ++row) {
    const float* ds = s.total + (row - t.first) * stride + (c.start[row] - t.origin());
    if (dead(c, row)) clear_dead_row<T>(c, entry, row);
    else pair_row<C, T>(c, entry, row, ds, TILE * stride, w.weight, s);
  }
}

// dK and dV [N, H, D] of one atom, for key number `key` of an entry: the sum over the threads that saw it.
static void add_threads(const Call& c, index_t entry, index_t key, index_t atom, float* const* dk, float* const* dv,
                        const Chunk* chunks) {
  index_t width = padded_dim(c);
  for (index_t h = 0; h < c.heads; ++h) {
    index_t to = (((entry * c.keys + key) * c.atoms + atom) * c.heads + h) * c.dim;
    std::fill(c.dk + to, c.dk + to + c.dim, 0.f);
    std::fill(c.dv + to, c.dv + to + c.dim, 0.f);
    for (index_t i = 0; i < c.threads; ++i) {
      if (atom < chunks[i].lo || atom >= chunks[i].hi) continue;
      index_t from = key * chunks[i].sum_floats(c) + (h * (chunks[i].span() + SUM_ROWS) + atom - chunks[i].lo) * width;
      for (index_t d = 0; d < c.dim; ++d) {
        c.dk[to + d] += LN_2 * dk[i][from + d];  // the queries were in units of log 2
        c.dv[to + d] += dv[i][from + d];
      }
    }
  }
}

// lanes [H, C, LANES] summed over their lanes; or, where a slot's channels are the lanes, the first C of each head.
static void add_moment(const Call& c, const float* lanes, bool lanes_are_channels) {
  for (index_t h = 0; h < c.heads; ++h)
    for (index_t i = 0; i < c.channels; ++i) {
      const float* head = lanes + h * c.channels * LANES;
      c.moment[h * c.channels + i] += lanes_are_channels ? head[i] : sum(load(head + i * LANES));
    }
}

template <int C, class T>
static void backward(const Call& c) {
  BackwardWork w(c);
  index_t item = c.atoms * c.heads * c.dim, blocks = key_blocks(c);
  std::copy(c.weight, c.weight + c.heads * c.channels, w.weight);
  for (index_t i = 0; i < c.heads * c.channels; ++i) w.scaled_weight[i] = c.weight[i] * LOG2_E;
  std::fill(c.moment, c.moment + c.heads * c.channels, 0.f);
  std::vector<Chunk> chunks;
  std::vector<float*> scratch, dk(c.threads), dv(c.threads), moments(c.threads);
  float* at = w.scratch;
  for (index_t i = 0; i < c.threads; ++i) {
    chunks.emplace_back(c, i);
    scratch.push_back(at);
    at += BackwardScratch::floats(c) + 2 * c.keys * chunks[i].sum_floats(c);
  }
  for (index_t entry = 0; entry < c.entries; ++entry) {
#pragma omp parallel num_threads(c.threads)
    {
#pragma omp for schedule(static)
      for (index_t i = 0; i < c.keys * blocks; ++i) {
        index_t key = i / blocks, from = (entry * c.keys + key) * item;
        pack_columns(c, c.k + from, w.key_columns + key * column_floats(c), i % blocks);
        pack_columns(c, c.v + from, w.value_columns + key * column_floats(c), i % blocks);
        pack_rows(c, c.k + from, w.keys + key * row_floats(c), i % blocks);
      }
#pragma omp for schedule(static, 1)
      for (index_t i = 0; i < c.threads; ++i) {
        BackwardScratch s(c, scratch[i], c.keys * chunks[i].sum_floats(c));
        dk[i] = s.dk, dv[i] = s.dv, moments[i] = s.moment;
        for_tiles(
            c, chunks[i].first, chunks[i].end,
            [&](const Tile& t) { backward_tile<C, T>(c, entry, t, chunks[i], w, s); },
            [&](index_t row) { clear_dead_row<T>(c, entry, row); });
      }
#pragma omp for schedule(static)
      for (index_t i = 0; i < c.keys * c.atoms; ++i)
        add_threads(c, entry, i / c.atoms, i % c.atoms, dk.data(), dv.data(), chunks.data());
    }
    for (index_t i = 0; i < c.threads; ++i) add_moment(c, moments[i], C == CHANNELS && sizeof(T) == sizeof(float));
  }
}
