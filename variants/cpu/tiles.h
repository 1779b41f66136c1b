// One call, its query tiles, and the small matrix products over them.
#pragma once

#include "vector.h"

constexpr index_t TILE = 24;  // query rows of a tile: a multiple of both row blocks below
#if defined(__AVX512F__)
constexpr int SCORE_ROWS = 6, SCORE_BLOCKS = 4, SUM_ROWS = 12;  // accumulators fill 24 of 32 registers
#else
constexpr int SCORE_ROWS = 6, SCORE_BLOCKS = 2, SUM_ROWS = 6;  // ... 12 of 16
#endif

// Everything is contiguous; Q, K, V, O and their gradients are float [B, N, H, D].
struct Call {
  // B_p entries of p, each shared by M samples: item e·M + i of the B = B_p·M of Q is sample i of entry e
  index_t entries, samples, keys;  // keys: of how many items an entry has K and V: 1 or M
  index_t pair_items, mask_items;  // 1 or B_p: one for all entries, or each its own
  index_t atoms, slots, heads, dim, channels, threads;
  const float *q, *k, *v;  // K, V [B_p · keys, N, H, D]
  const void* p;           // [pair_items, N, K, C]
  const float* weight;    // [H, C]: W·γ, centred over c
  const int64_t *base, *start, *stop;  // [N]
  const uint8_t* mask;    // [mask_items, N, K]: slots that some sample sees; null: every slot inside a row's hull is live
  const uint8_t* own_mask;  // [B, N, K]: slots that each sample sees; null: those of mask
  float *out, *lse;       // lse [B, H, N]: log2 of the softmax's sum, +inf in dead rows; null: not wanted
  const float* grad;      // dO
  float *dq, *dk, *dv, *moment;  // moment [H, C]: Σ dS · x̂
  void* dp;               // null: not wanted
  float* work;            // work_floats(call, backward) of them
  float eps;
  int32_t pair_is_bfloat16, adds_dp;  // adds_dp: dp holds a sum already, to which this call's is added
};

struct Tile {
  index_t first, stop, lo, hi;  // rows, and the atoms that they see
  index_t origin() const { return lo / LANES * LANES; }  // the atom of column 0
  index_t rows() const { return stop - first; }
  index_t columns() const { return hi - origin(); }
};

// An entry's row of p or dp, [items, N, K, C], and of the mask.
static inline index_t pair_at(const Call& c, index_t items, index_t entry, index_t row) {
  return ((items == 1 ? 0 : entry) * c.atoms + row) * c.slots;
}
static inline const uint8_t* mask_of_row(const Call& c, index_t entry, index_t row) {
  return c.mask ? c.mask + pair_at(c, c.mask_items, entry, row) : nullptr;
}

static inline bool dead(const Call& c, index_t row) { return c.start[row] >= c.stop[row]; }

// The tile that begins at `first`, which is alive; it ends early where the span would jump.
static Tile tile_at(const Call& c, index_t first, index_t end) {
  Tile t{first, first + 1, c.start[first], c.stop[first]};
  for (index_t row = first + 1; row < std::min(end, first + TILE); ++row) {
    if (!dead(c, row)) {
      index_t lo = std::min(t.lo, c.start[row]), hi = std::max(t.hi, c.stop[row]);
      if (hi - lo > c.slots + 2 * TILE) break;
      t.lo = lo, t.hi = hi;
    }
    t.stop = row + 1;
  }
  return t;
}

static index_t padded_dim(const Call& c) { return round_up(c.dim, LANES); }

// A thread's rows, and the atoms that they see, from the start of a block.
struct Chunk {
  index_t first, end, lo, hi;

  Chunk(const Call& c, index_t thread) {
    index_t size = (c.atoms + c.threads - 1) / c.threads;
    first = std::min(c.atoms, thread * size), end = std::min(c.atoms, first + size);
    lo = c.atoms, hi = 0;
    for (index_t row = first; row < end; ++row)
      if (!dead(c, row)) lo = std::min(lo, c.start[row]), hi = std::max(hi, c.stop[row]);
    lo = hi ? lo / LANES * LANES : 0;
  }

  index_t span() const { return hi - lo; }
  index_t sum_floats(const Call& c) const { return c.heads * (span() + SUM_ROWS) * padded_dim(c); }
};

constexpr index_t MARGIN = 16;  // columns of zeros behind a tile's last: a vector's, or what fills a block of rows
static_assert(MARGIN >= LANES && MARGIN >= SUM_ROWS && TILE % SCORE_ROWS == 0 && TILE % SUM_ROWS == 0);

// Floats between two rows of scores: room for any tile's columns and the margin; no multiple of a page.
static index_t score_stride(const Call& c) {
  index_t wide = round_up(c.slots + 2 * TILE + LANES, LANES) + 2 * MARGIN;
  return wide % 256 == 0 ? wide + MARGIN : wide;
}

static index_t key_blocks(const Call& c) { return (c.atoms + LANES - 1) / LANES; }

// Floats of one item of K or V, packed by columns and by rows.
static index_t column_floats(const Call& c) { return c.heads * key_blocks(c) * c.dim * LANES; }
static index_t row_floats(const Call& c) { return c.heads * c.atoms * padded_dim(c); }

// x [N, H, D] as blocks of atoms, [H, blocks, D, LANES]: what a score product reads in order.
static void pack_columns(const Call& c, const float* x, float* packed, index_t block) {
  for (index_t h = 0; h < c.heads; ++h) {
    float* to = packed + (h * key_blocks(c) + block) * c.dim * LANES;
    for (int j = 0; j < LANES; ++j) {
      index_t atom = block * LANES + j;
      const float* from = x + (atom * c.heads + h) * c.dim;
      for (index_t d = 0; d < c.dim; ++d) to[d * LANES + j] = atom < c.atoms ? from[d] : 0.f;
    }
  }
}

// One block's atoms of x [N, H, D] as [H, N, Dp], 0 in the padding.
static void pack_rows(const Call& c, const float* x, float* packed, index_t block) {
  index_t width = padded_dim(c);
  for (index_t atom = block * LANES; atom < std::min(c.atoms, (block + 1) * LANES); ++atom)
    for (index_t h = 0; h < c.heads; ++h) {
      float* to = packed + (h * c.atoms + atom) * width;
      const float* from = x + (atom * c.heads + h) * c.dim;
      for (index_t d = 0; d < width; ++d) to[d] = d < c.dim ? from[d] : 0.f;
    }
}

// finish(r, j, Σ_d q[r][d] · columns[j][d]) for SCORE_ROWS rows of `width` floats and BLOCKS blocks of columns.
template <int BLOCKS, class Finish>
static inline void score_block(const float* q, index_t width, const float* columns, index_t dim, const Finish& finish) {
  vec sums[SCORE_ROWS][BLOCKS] = {};
  for (index_t d = 0; d < dim; ++d) {
    vec keys[BLOCKS];
#pragma GCC unroll 16
    for (int j = 0; j < BLOCKS; ++j) keys[j] = load(columns + (j * dim + d) * LANES);
#pragma GCC unroll 16
    for (int r = 0; r < SCORE_ROWS; ++r) {
      vec query = splat(q[r * width + d]);
#pragma GCC unroll 16
      for (int j = 0; j < BLOCKS; ++j) sums[r][j] += query * keys[j];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < SCORE_ROWS; ++r)
#pragma GCC unroll 16
    for (int j = 0; j < BLOCKS; ++j) finish(r, j, sums[r][j]);
}

// finish(row, column, Σ_d q[row][d] · columns[d][column …]) for rows rounded up to SCORE_ROWS and n_columns to LANES.
template <class Finish>
static inline void score_product(const float* q, index_t width, const float* columns, index_t rows, index_t n_columns,
                                 index_t dim, const Finish& finish) {
  index_t blocks = (n_columns + LANES - 1) / LANES;
  for (index_t j = 0; j < blocks;) {
    index_t wide = blocks - j >= SCORE_BLOCKS ? SCORE_BLOCKS : 1;
    const float* at = columns + j * dim * LANES;
    for (index_t r = 0; r < rows; r += SCORE_ROWS) {
      auto inner = [&](int i, int b, vec s) { finish(r + i, (j + b) * LANES, s); };
      if (wide == SCORE_BLOCKS)
        score_block<SCORE_BLOCKS>(q + r * width, width, at, dim, inner);
      else
        score_block<1>(q + r * width, width, at, dim, inner);
    }
    j += wide;
  }
}

// sums[r] = Σ_m weights[r·row + m·step] · x[m][0:LANES·VECS] over m < count; finish(r, vector, sum).
template <int ROWS, int VECS, class Start, class Finish>
static inline void sum_block(const float* weights, index_t row, index_t step, const float* x, index_t width,
                             index_t count, const Start& start, const Finish& finish) {
  vec sums[ROWS][VECS];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 16
    for (int j = 0; j < VECS; ++j) sums[r][j] = start(r, j);
  for (index_t m = 0; m < count; ++m) {
    vec values[VECS];
#pragma GCC unroll 16
    for (int j = 0; j < VECS; ++j) values[j] = load(x + m * width + j * LANES);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
      vec w = splat(weights[r * row + m * step]);
#pragma GCC unroll 16
      for (int j = 0; j < VECS; ++j) sums[r][j] += w * values[j];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 16
    for (int j = 0; j < VECS; ++j) finish(r, j, sums[r][j]);
}

// out[r] (+)= Σ_m weights[r·row + m·step] · x[m], rows of `width` floats.
static inline void sum_product(const float* weights, index_t row, index_t step, const float* x, index_t width,
                               index_t count, float* out, index_t rows, bool add) {
  for (index_t r = 0; r < rows;) {
    bool whole = rows - r >= SUM_ROWS;
    for (index_t j = 0; j < width;) {
      bool pair = width - j >= 2 * LANES;
      float* to = out + r * width + j;
      auto begin = [&](int i, int b) { return add ? load(to + i * width + b * LANES) : vec{}; };
      auto finish = [&](int i, int b, vec s) { store(to + i * width + b * LANES, s); };
      const float *w = weights + r * row, *values = x + j;
      if (whole && pair) sum_block<SUM_ROWS, 2>(w, row, step, values, width, count, begin, finish);
      else if (whole) sum_block<SUM_ROWS, 1>(w, row, step, values, width, count, begin, finish);
      else if (pair) sum_block<1, 2>(w, row, step, values, width, count, begin, finish);
      else sum_block<1, 1>(w, row, step, values, width, count, begin, finish);
      j += pair ? 2 * LANES : LANES;
    }
    r += whole ? SUM_ROWS : 1;
  }
}
