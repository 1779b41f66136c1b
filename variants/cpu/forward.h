// O = softmax(Q·Kᵀ/√D + bias(p))·V over a band, tile by tile.
#pragma once

#include "pairs.h"

constexpr float LOG2_E = 1.44269504f;  // all scores are in units of log 2

// What one thread needs for one tile.
struct Scratch {
  float *bias, *scores;             // [H, TILE, stride]; the same where no two samples share it
  float *queries, *sums, *inverse;  // [H, TILE, Dp], [TILE, Dp], [TILE]
  vec* pairs;                       // [C]

  static index_t floats(const Call& c) {
    index_t rows = c.heads * TILE * ((c.samples > 1 ? 2 : 1) * score_stride(c) + padded_dim(c));
    return rows + TILE * padded_dim(c) + round_up(TILE, LANES) + c.channels * LANES;
  }

  Scratch(const Call& c, float* work) {
    bias = work, work += c.samples > 1 ? c.heads * TILE * score_stride(c) : 0;
    scores = work, work += c.heads * TILE * score_stride(c);
    queries = work, work += c.heads * TILE * padded_dim(c);
    sums = work, work += TILE * padded_dim(c);
    inverse = work, work += round_up(TILE, LANES);
    pairs = (vec*)work;
  }
};

// The tile's rows of x [B, N, H, D], times scale, as [H, TILE, Dp], 0 beyond the last row and channel.
static void take_rows(const Call& c, index_t b, const Tile& t, const float* x, float scale, float* taken) {
  index_t width = padded_dim(c);
  std::fill(taken, taken + c.heads * TILE * width, 0.f);
  for (index_t r = 0; r < t.rows(); ++r)
    for (index_t h = 0; h < c.heads; ++h) {
      const float* from = x + (((b * c.atoms + t.first + r) * c.heads) + h) * c.dim;
      for (index_t d = 0; d < c.dim; ++d) taken[(h * TILE + r) * width + d] = scale * from[d];
    }
}

template <int C, class T>
static void bias_of_tile(const Call& c, index_t entry, const Tile& t, const float* weight, const Scratch& s) {
  index_t stride = score_stride(c);
  for (index_t row = t.first; row < t.stop; ++row) {
    if (dead(c, row)) continue;
    const T* p = (const T*)c.p + pair_at(c, c.pair_items, entry, row) * c.channels;
    float* bias = s.bias + (row - t.first) * stride + (c.start[row] - t.origin());
    bias_of_row<C>(c, p, mask_of_row(c, entry, row), row, weight, bias, TILE * stride, s.pairs);
  }
}

// scores = bias + Q·Kᵀ for one head of an item, −inf in slots that are the item's own dead ones.
static void scores_of_head(const Call& c, index_t item, const Tile& t, const float* queries, const float* columns,
                           const float* bias, float* scores) {
  index_t stride = score_stride(c);
  auto add = [&](index_t r, index_t column, vec s) {
    index_t at = r * stride + column;
    store(scores + at, load(bias + at) + s);
  };
  score_product(queries, padded_dim(c), columns + t.origin() * c.dim, t.rows(), t.columns(), c.dim, add);
  for (index_t r = 0; scores != bias && r < t.rows(); ++r)  // what a row's last vector reaches beyond the products
    store(scores + r * stride + round_up(t.columns(), LANES), splat(MINUS_INF));
  for (index_t row = t.first; c.own_mask && row < t.stop; ++row) {
    if (dead(c, row)) continue;
    const uint8_t* mask = c.own_mask + pair_at(c, 0, item, row);
    index_t slot = c.start[row] - c.base[row], end = c.stop[row] - c.base[row];
    float* at = scores + (row - t.first) * stride + (c.start[row] - t.origin());
    for (; slot < end; slot += LANES, at += LANES)
      store(at, live_slots(mask + slot, end - slot) ? load(at) : splat(MINUS_INF));
  }
}

// Set the columns of a tile's row that lie outside [from, to) to 0.
static void clear_outside(float* row, index_t from, index_t to, index_t columns) {
  std::fill(row, row + from, 0.f);
  std::fill(row + to, row + round_up(columns, LANES) + MARGIN, 0.f);
}

// One row of scores in columns [from, to) becomes exp(s − max); returns the sum and the maximum.
static inline float exponentials(float* row, index_t from, index_t to, float& maximum) {
  vec top = splat(MINUS_INF);
  for (index_t j = from; j < to; j += LANES) top = larger(top, load(row + j));
  maximum = largest(top);
  float shift = maximum > MINUS_INF ? maximum : 0.f;
  vec total = {};
  for (index_t j = from; j < to; j += LANES) {
    vec e = exp2v(load(row + j) - shift);
    store(row + j, e);
    total += e;
  }
  return sum(total);
}

static void softmax_of_tile(const Call& c, index_t b, index_t h, const Tile& t, const Scratch& s, float* scores) {
  for (index_t r = 0; r < t.rows(); ++r) {
    index_t row = t.first + r, from = c.start[row] - t.origin(), to = c.stop[row] - t.origin();
    float *at = scores + r * score_stride(c), total = 0, top = 0;
    if (dead(c, row)) from = to = 0;
    else total = exponentials(at, from, to, top);
    clear_outside(at, from, to, t.columns());
    s.inverse[r] = total == 0 ? 0.f : 1.f / total;
    if (c.lse) c.lse[(b * c.heads + h) * c.atoms + row] = total == 0 ? -MINUS_INF : top + std::log2(total);
  }
}

// One sample of a tile, from its bias.
static void forward_sample(const Call& c, index_t b, const Tile& t, const float* columns, const float* values,
                           const Scratch& s) {
  index_t stride = score_stride(c), width = padded_dim(c), blocks = key_blocks(c);
  take_rows(c, b, t, c.q, LOG2_E / std::sqrt((float)c.dim), s.queries);
  for (index_t h = 0; h < c.heads; ++h) {
    float* scores = s.scores + h * TILE * stride;
    scores_of_head(c, b, t, s.queries + h * TILE * width, columns + h * blocks * c.dim * LANES,
                   s.bias + h * TILE * stride, scores);
    softmax_of_tile(c, b, h, t, s, scores);
    const float* first = values + (h * c.atoms + t.origin()) * width;
    sum_product(scores, stride, 1, first, width, t.columns(), s.sums, t.rows(), false);
    for (index_t r = 0; r < t.rows(); ++r) {
      float* to = c.out + (((b * c.atoms + t.first + r) * c.heads) + h) * c.dim;
      for (index_t d = 0; d < c.dim; ++d) to[d] = s.sums[r * width + d] * s.inverse[r];
    }
  }
}

// What all threads read of one entry: weights, then K by columns and V by rows of each of its keys.
struct ForwardWork {
  float *weight, *columns, *values, *scratch;

  static index_t shared_floats(const Call& c) {
    return round_up(c.heads * c.channels, LANES) + c.keys * (column_floats(c) + row_floats(c));
  }

  explicit ForwardWork(const Call& c) {
    weight = c.work;
    columns = weight + round_up(c.heads * c.channels, LANES);
    values = columns + c.keys * column_floats(c);
    scratch = values + c.keys * row_floats(c);
  }
};

// The bias of a tile is made once, for all samples of its entry.
template <int C, class T>
static void forward_tile(const Call& c, index_t entry, const Tile& t, const ForwardWork& w, const Scratch& s) {
  bias_of_tile<C, T>(c, entry, t, w.weight, s);
  for (index_t i = 0; i < c.samples; ++i) {
    index_t key = c.keys == 1 ? 0 : i;
    forward_sample(c, entry * c.samples + i, t, w.columns + key * column_floats(c), w.values + key * row_floats(c), s);
  }
}

// on_tile(tile) for the tiles of rows [first, end), on_dead(row) for the dead rows between them.
template <class OnTile, class OnDead>
static void for_tiles(const Call& c, index_t first, index_t end, const OnTile& on_tile, const OnDead& on_dead) {
  for (index_t row = first; row < end;) {
    if (dead(c, row)) {
      on_dead(row++);
    } else {
      Tile t = tile_at(c, row, end);
      on_tile(t);
      row = t.stop;
    }
  }
}

static void clear_dead_output(const Call& c, index_t entry, index_t row) {
  for (index_t b = entry * c.samples; b < (entry + 1) * c.samples; ++b) {
    float* to = c.out + (b * c.atoms + row) * c.heads * c.dim;
    std::fill(to, to + c.heads * c.dim, 0.f);
    for (index_t h = 0; c.lse && h < c.heads; ++h) c.lse[(b * c.heads + h) * c.atoms + row] = -MINUS_INF;
  }
}

template <int C, class T>
static void forward(const Call& c) {
  ForwardWork w(c);
  index_t item = c.atoms * c.heads * c.dim, blocks = key_blocks(c);
  for (index_t i = 0; i < c.heads * c.channels; ++i) w.weight[i] = c.weight[i] * LOG2_E;
  for (index_t entry = 0; entry < c.entries; ++entry) {
#pragma omp parallel num_threads(c.threads)
    {
#pragma omp for schedule(static)
      for (index_t i = 0; i < c.keys * blocks; ++i) {
        index_t key = i / blocks, from = (entry * c.keys + key) * item;
        pack_columns(c, c.k + from, w.columns + key * column_floats(c), i % blocks);
        pack_rows(c, c.v + from, w.values + key * row_floats(c), i % blocks);
      }
#pragma omp for schedule(static, 1)
      for (index_t thread = 0; thread < c.threads; ++thread) {
        Scratch s(c, w.scratch + thread * Scratch::floats(c));
        Chunk chunk(c, thread);
        for_tiles(
            c, chunk.first, chunk.end,
            [&](const Tile& t) { forward_tile<C, T>(c, entry, t, w, s); },
            [&](index_t row) { clear_dead_output(c, entry, row); });
      }
    }
  }
}
