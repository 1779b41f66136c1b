// The pairs of encoder and decoder, LANES slots of a row at a time:
//
//   skip[l,k] = G·(v, 1/(1+|v|²), 1) + own[l] + other[m],  v = position[l] − position[m],  m = index[l,k]   (encoder)
//   x = skip + band[residue(l), column(residue(m))],  out = x + W₄·relu(W₃·relu(W₂·relu(W₁·x)))
//
// Channels are padded with zeros to P, a multiple of LANES, which changes nothing; dead slots are 0 throughout.
#pragma once

#include "pairs.h"

constexpr int GEOMETRY = 5, LAYERS = 4;  // v, 1/(1+|v|²), 1; the linears

// Everything is contiguous. T, the type of skip, out and their gradients, is float or bfloat16.
struct Pairs {
  index_t batch, atoms, slots, residues, width, channels, padded, threads, mask_items;
  const int64_t *index, *residue;             // [N, K], [N]
  const uint8_t* mask;                        // [mask_items, N, K]
  const float *band, *weights, *transposed;   // [B, R, width, P]; [LAYERS, P, P]; each layer's transpose
  const float *position, *own, *other, *geometry;  // [B, N, 3], [B, N, P] twice, [GEOMETRY, P]; null in the decoder
  void *skip, *out;                           // [B, N, K, C]; the encoder writes both, the decoder reads skip
  const void *grad_skip, *grad;               // of skip (encoder) and out; null: 0
  const int64_t *order, *rank, *first;        // atoms by residue [N], an atom's place there [N], a residue's first [R + 1]
  float *d_band, *d_position, *d_own, *d_other, *d_weights, *d_geometry;
  void* d_skip;                               // decoder's; null: not wanted
  float* work;                                // pairs_work_floats(call, backward) of them
  int32_t is_bfloat16, is_encoder;
};

template <int P>
static inline index_t padded(const Pairs& c) { return P ? P : c.padded; }

// What LANES slots of a row hold: their atoms, −1 where dead, and where their residues stand in the row's band.
struct Slots {
  index_t count, atom[LANES], column[LANES];
  ivec live;
};

// False where all are dead.
static inline bool look(const Pairs& c, index_t b, index_t row, index_t slot, Slots& s) {
  index_t at = row * c.slots + slot;
  const uint8_t* mask = c.mask + (b % c.mask_items) * c.atoms * c.slots + at;
  index_t shift = c.width == c.residues ? 0 : c.width / 2 - c.residue[row];
  int32_t set[LANES];
  bool any = false;
  s.count = std::min<index_t>(c.slots - slot, LANES);
  for (index_t j = 0; j < LANES; ++j) {
    bool live = j < s.count && mask[j];
    s.atom[j] = live ? c.index[at + j] : -1;
    s.column[j] = live ? c.residue[s.atom[j]] + shift : 0;
    set[j] = -live;
    any |= live;
  }
  std::memcpy(&s.live, set, sizeof set);
  return any;
}

// Slots of a tensor [.., C] as rows of P floats, 0 where dead or padding; null gives 0.
template <int P, class T>
static inline void read_rows(const Pairs& c, const Slots& s, const T* from, float* rows) {
  const index_t n = padded<P>(c);
  for (index_t j = 0; j < LANES; ++j) {
    float* row = rows + j * n;
    if (!from || s.atom[j] < 0) std::memset(row, 0, n * sizeof(float));
    else if (sizeof(T) == sizeof(float) && c.channels == n) std::memcpy(row, from + j * n, n * sizeof(float));
    else
      for (index_t i = 0; i < n; ++i) row[i] = i < c.channels ? widen(from[j * c.channels + i]) : 0.f;
  }
}

template <int P, class T>
static inline void write_rows(const Pairs& c, index_t count, const float* rows, T* to) {
  const index_t n = padded<P>(c);
  for (index_t j = 0; j < count; ++j)
    if (sizeof(T) == sizeof(float) && c.channels == n) std::memcpy(to + j * n, rows + j * n, n * sizeof(float));
    else
      for (index_t i = 0; i < c.channels; ++i) narrow(rows[j * n + i], to + j * c.channels + i);
}

// rows[slot][channel] <-> x[channel][slot]
template <int P>
static inline void to_lanes(const Pairs& c, const float* rows, vec* x) {
  const index_t n = padded<P>(c);
#pragma GCC unroll 4
  for (index_t part = 0; part < n; part += LANES) {
    vec block[LANES];
#pragma GCC unroll 16
    for (int j = 0; j < LANES; ++j) block[j] = load(rows + j * n + part);
    transpose(block);
#pragma GCC unroll 16
    for (int j = 0; j < LANES; ++j) x[part + j] = block[j];
  }
}

template <int P>
static inline void to_rows(const Pairs& c, const vec* x, float* rows) {
  const index_t n = padded<P>(c);
#pragma GCC unroll 4
  for (index_t part = 0; part < n; part += LANES) {
    vec block[LANES];
#pragma GCC unroll 16
    for (int j = 0; j < LANES; ++j) block[j] = x[part + j];
    transpose(block);
#pragma GCC unroll 16
    for (int j = 0; j < LANES; ++j) store(rows + j * n + part, block[j]);
  }
}

// v and 1/(1+|v|²) of a live slot.
static inline void geometry_of(const Pairs& c, index_t b, index_t row, index_t atom, float* g) {
  const float *l = c.position + (b * c.atoms + row) * 3, *m = c.position + (b * c.atoms + atom) * 3;
  for (int i = 0; i < 3; ++i) g[i] = l[i] - m[i];
  g[3] = 1.f / (1.f + (g[0] * g[0] + g[1] * g[1] + g[2] * g[2]));
}

// rows = skip of the encoder.
template <int P>
static inline void reference_rows(const Pairs& c, index_t b, index_t row, const Slots& s, float* rows) {
  const index_t n = padded<P>(c);
  const float* own = c.own + (b * c.atoms + row) * n;
  for (index_t j = 0; j < LANES; ++j) {
    float *to = rows + j * n, g[4];
    if (s.atom[j] < 0) {
      std::memset(to, 0, n * sizeof(float));
      continue;
    }
    geometry_of(c, b, row, s.atom[j], g);
    const float* other = c.other + (b * c.atoms + s.atom[j]) * n;
#pragma GCC unroll 4
    for (index_t i = 0; i < n; i += LANES) {
      vec y = load(own + i) + load(c.geometry + 4 * n + i) + load(other + i);
      for (int k = 0; k < 4; ++k) y += g[k] * load(c.geometry + k * n + i);
      store(to + i, y);
    }
  }
}

template <int P>
static inline void add_band(const Pairs& c, index_t b, index_t row, const Slots& s, float* rows) {
  const index_t n = padded<P>(c);
  const float* band = c.band + (b * c.residues + c.residue[row]) * c.width * n;
  for (index_t j = 0; j < LANES; ++j) {
    if (s.atom[j] < 0) continue;
    const float* from = band + s.column[j] * n;
#pragma GCC unroll 4
    for (index_t i = 0; i < n; i += LANES) store(rows + j * n + i, load(rows + j * n + i) + load(from + i));
  }
}

static inline vec relu(vec x) { return x < 0.f ? vec{} : x; }  // NaN stays

// finish(o, Σ_c w[o][c] · x[c]) for all o: half a register file of sums at once.
template <int P, class Finish>
static inline void multiply(const Pairs& c, const float* w, const vec* x, const Finish& finish) {
  constexpr int SUMS = 8;
  const index_t n = padded<P>(c);
  for (index_t o = 0; o < n; o += SUMS) {
    vec sums[SUMS] = {};
#pragma GCC unroll 16
    for (index_t i = 0; i < n; ++i) {
      vec in = x[i];
#pragma GCC unroll 8
      for (int k = 0; k < SUMS; ++k)
        if (o + k < n) sums[k] += w[(o + k) * n + i] * in;
    }
#pragma GCC unroll 8
    for (int k = 0; k < SUMS; ++k)
      if (o + k < n) finish(o + k, sums[k]);
  }
}

// One thread's scratch of a forward pass.
struct PairScratch {
  float *skip, *rows;
  vec *x, *a, *b;

  static index_t floats(const Pairs& c) { return 5 * LANES * c.padded; }

  PairScratch(const Pairs& c, float* work) {
    const index_t size = LANES * c.padded;
    skip = work, rows = work + size;
    x = (vec*)(work + 2 * size), a = x + c.padded, b = a + c.padded;
  }
};

template <int P, bool ENCODER, class T>
static inline void pairs_of_slots(const Pairs& c, index_t b, index_t row, const Slots& s, index_t at, const PairScratch& w) {
  const index_t n = padded<P>(c);
  if (ENCODER) {
    reference_rows<P>(c, b, row, s, w.rows);
    write_rows<P>(c, s.count, w.rows, (T*)c.skip + at);
  } else {
    read_rows<P>(c, s, (const T*)c.skip + at, w.rows);
  }
  add_band<P>(c, b, row, s, w.rows);
  to_lanes<P>(c, w.rows, w.x);
  multiply<P>(c, c.weights, w.x, [&](index_t o, vec y) { w.a[o] = relu(y); });
  multiply<P>(c, c.weights + n * n, w.a, [&](index_t o, vec y) { w.b[o] = relu(y); });
  multiply<P>(c, c.weights + 2 * n * n, w.b, [&](index_t o, vec y) { w.a[o] = relu(y); });
  multiply<P>(c, c.weights + 3 * n * n, w.a, [&](index_t o, vec y) { w.x[o] += y; });
  to_rows<P>(c, w.x, w.rows);
  write_rows<P>(c, s.count, w.rows, (T*)c.out + at);
}

template <int P, bool ENCODER, class T>
static void make_pairs(const Pairs& c) {
#pragma omp parallel for schedule(static, 1) num_threads(c.threads)
  for (index_t thread = 0; thread < c.threads; ++thread) {
    PairScratch w(c, c.work + thread * PairScratch::floats(c));
    index_t rows = c.batch * c.atoms, size = (rows + c.threads - 1) / c.threads;
    for (index_t i = thread * size; i < std::min(rows, (thread + 1) * size); ++i)
      for (index_t slot = 0; slot < c.slots; slot += LANES) {
        Slots s;
        index_t at = (i * c.slots + slot) * c.channels;
        if (look(c, i / c.atoms, i % c.atoms, slot, s)) {
          pairs_of_slots<P, ENCODER, T>(c, i / c.atoms, i % c.atoms, s, at, w);
        } else {
          if (ENCODER) std::memset((T*)c.skip + at, 0, s.count * c.channels * sizeof(T));
          std::memset((T*)c.out + at, 0, s.count * c.channels * sizeof(T));
        }
      }
  }
}
