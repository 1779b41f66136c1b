// Gradients of the pairs, activations made anew. With g the gradient of a layer's result and h what went into it:
//
//   dW = Σ g·hᵀ,  dh = Wᵀ·g where h > 0;  dx = dout + W₁ᵀ·g₁;  dskip (+)= dx,  dband[residue(l), column(m)] += dx
//   dG = Σ dskip·(v, s, 1)ᵀ with s = 1/(1+|v|²),  down[l] = Σ_k dskip,  dother[m] += dskip
//   dv = G_vᵀ·dskip − 2 s² <G_s, dskip>·v,  dposition[l] += dv,  dposition[m] −= dv
//
// A thread takes all rows of its residues, so that a row of the band is its own; what belongs to the atoms that are
// seen it adds up in a buffer over those in reach, and the threads' buffers are added last, in their order.
#pragma once

#include <vector>

#include "make_pairs.h"

constexpr int BUNCH = 8;       // times LANES slots, between which weights' gradients stay in registers
constexpr int SUM_BLOCK = 4;   // ... block by block, SUM_BLOCK squared of them
constexpr int GEOMETRY_PADDED = 8, SEEN = 4;  // multiples of SUM_BLOCK; x, y, z and nothing of an atom that is seen

// A thread's rows in residue order, [begin, end), all of whole residues; and the places in that order that they see.
struct PairChunk {
  index_t begin, end, lo, hi;

  PairChunk(const Pairs& c, index_t thread) {
    begin = residue_start(c, thread), end = residue_start(c, thread + 1);
    lo = 0, hi = c.atoms;
    if (begin < end && c.width != c.residues) {
      index_t half = c.width / 2, from = c.residue[c.order[begin]] - half, to = c.residue[c.order[end - 1]] + half + 1;
      lo = c.first[std::max<index_t>(0, from)], hi = c.first[std::min(c.residues, to)];
    }
  }

  index_t seen_floats(const Pairs& c) const { return (hi - lo) * (c.padded + SEEN); }

 private:
  // Where the first residue begins that has its first atom in a thread's even share.
  static index_t residue_start(const Pairs& c, index_t thread) {
    index_t at = thread * c.atoms / c.threads;
    while (at > 0 && at < c.atoms && c.residue[c.order[at]] == c.residue[c.order[at - 1]]) ++at;
    return at;
  }
};

struct PairBackwardScratch : PairScratch {
  vec *inputs[LAYERS], *grads[2], *geometry, *out;  // of a bunch: [BUNCH, P] each, [BUNCH, GEOMETRY_PADDED]; dx
  Slots* slots;
  vec *weight_sums, *geometry_sums;  // [LAYERS, P, P], [P, GEOMETRY_PADDED], lanes apart
  float *row_sums, *seen, *seen_position;  // down [P]; dother [hi − lo, P], −dv [hi − lo, SEEN]

  static index_t slots_floats() { return round_up(BUNCH * (sizeof(Slots) + 3) / 4, LANES); }

  static index_t sum_floats(const Pairs& c) {
    return LANES * c.padded * (LAYERS * c.padded + GEOMETRY_PADDED) + c.padded;
  }

  static index_t floats(const Pairs& c, const PairChunk& chunk) {
    index_t bunch = BUNCH * LANES * ((LAYERS + 3) * c.padded + GEOMETRY_PADDED);
    return PairScratch::floats(c) + bunch + slots_floats() + sum_floats(c) + round_up(chunk.seen_floats(c), LANES);
  }

  PairBackwardScratch(const Pairs& c, const PairChunk& chunk, float* work) : PairScratch(c, work) {
    vec* at = (vec*)(work + PairScratch::floats(c));
    for (vec*& input : inputs) input = at, at += BUNCH * c.padded;
    for (vec*& grad : grads) grad = at, at += BUNCH * c.padded;
    out = at, at += BUNCH * c.padded;
    geometry = at, at += BUNCH * GEOMETRY_PADDED;
    slots = (Slots*)at, at += slots_floats() / LANES;
    weight_sums = at, at += LAYERS * c.padded * c.padded;
    geometry_sums = at, at += c.padded * GEOMETRY_PADDED;
    row_sums = (float*)at, seen = row_sums + c.padded, seen_position = seen + (chunk.hi - chunk.lo) * c.padded;
    std::fill((float*)weight_sums, (float*)weight_sums + sum_floats(c) + chunk.seen_floats(c), 0.f);
  }
};

// sums[o][i] += Σ_t g[t][o]·x[t][i], lanes apart, over t < count; g [BUNCH, n], x [BUNCH, wide].
static inline void outer_product(const vec* g, index_t n, const vec* x, index_t wide, index_t count, vec* sums) {
  for (index_t o = 0; o < n; o += SUM_BLOCK)
    for (index_t i = 0; i < wide; i += SUM_BLOCK) {
      vec block[SUM_BLOCK][SUM_BLOCK] = {};
      for (index_t t = 0; t < count; ++t) {
        vec in[SUM_BLOCK];
#pragma GCC unroll 4
        for (int k = 0; k < SUM_BLOCK; ++k) in[k] = x[t * wide + i + k];
#pragma GCC unroll 4
        for (int r = 0; r < SUM_BLOCK; ++r) {
          vec left = g[t * n + o + r];
#pragma GCC unroll 4
          for (int k = 0; k < SUM_BLOCK; ++k) block[r][k] += left * in[k];
        }
      }
#pragma GCC unroll 4
      for (int r = 0; r < SUM_BLOCK; ++r)
#pragma GCC unroll 4
        for (int k = 0; k < SUM_BLOCK; ++k) sums[(o + r) * wide + i + k] += block[r][k];
    }
}

// What went into each layer, and the gradient of out, of LANES slots: number t of the bunch.
template <int P, bool ENCODER, class T>
static inline void activations(const Pairs& c, index_t b, index_t row, index_t slot, index_t t,
                               const PairBackwardScratch& w) {
  const index_t n = padded<P>(c), at = ((b * c.atoms + row) * c.slots + slot) * c.channels;
  const Slots& s = w.slots[t];
  if (ENCODER) {
    reference_rows<P>(c, b, row, s, w.rows);
    float lanes[GEOMETRY][LANES] = {};
    for (index_t j = 0; j < LANES; ++j) {
      if (s.atom[j] < 0) continue;
      float g[GEOMETRY] = {};
      geometry_of(c, b, row, s.atom[j], g);
      g[4] = 1.f;
      for (int i = 0; i < GEOMETRY; ++i) lanes[i][j] = g[i];
    }
    for (int i = 0; i < GEOMETRY_PADDED; ++i)
      w.geometry[t * GEOMETRY_PADDED + i] = i < GEOMETRY ? load(lanes[i]) : vec{};
  } else {
    read_rows<P>(c, s, (const T*)c.skip + at, w.rows);
  }
  add_band<P>(c, b, row, s, w.rows);
  to_lanes<P>(c, w.rows, w.inputs[0] + t * n);
  for (int layer = 0; layer + 1 < LAYERS; ++layer) {
    vec* to = w.inputs[layer + 1] + t * n;
    multiply<P>(c, c.weights + layer * n * n, w.inputs[layer] + t * n, [&](index_t o, vec y) { to[o] = relu(y); });
  }
  read_rows<P>(c, s, c.grad ? (const T*)c.grad + at : nullptr, w.rows);
  to_lanes<P>(c, w.rows, w.out + t * n);
}

// The gradients of `count` bunched slots through the MLP: weights' into the sums, x's into `out`.
template <int P>
static inline void through_layers(const Pairs& c, index_t count, const PairBackwardScratch& w) {
  const index_t n = padded<P>(c);
  const vec* from = w.out;
  for (int layer = LAYERS - 1; layer >= 0; --layer) {
    outer_product(from, n, w.inputs[layer], n, count, w.weight_sums + layer * n * n);
    vec* to = layer ? w.grads[layer % 2] : w.out;
    for (index_t t = 0; t < count; ++t) {
      const vec* h = w.inputs[layer] + t * n;
      auto finish = [&](index_t o, vec y) { to[t * n + o] = layer ? (h[o] <= 0.f ? vec{} : y) : to[t * n + o] + y; };
      multiply<P>(c, c.transposed + layer * n * n, from + t * n, finish);
    }
    from = to;
  }
}

// dx of LANES slots, as rows, to the band; then dskip: to its atoms (encoder) or out (decoder).
template <int P, bool ENCODER, class T>
static inline void give_out(const Pairs& c, index_t b, index_t row, index_t slot, index_t t, const PairChunk& chunk,
                            const PairBackwardScratch& w) {
  const index_t n = padded<P>(c), at = ((b * c.atoms + row) * c.slots + slot) * c.channels;
  const Slots& s = w.slots[t];
  float* band = c.d_band + (b * c.residues + c.residue[row]) * c.width * n;
  to_rows<P>(c, w.out + t * n, w.rows);
  if (ENCODER) read_rows<P>(c, s, c.grad_skip ? (const T*)c.grad_skip + at : nullptr, w.skip);
  for (index_t j = 0; j < LANES; ++j) {
    if (s.atom[j] < 0) {
      std::memset(w.rows + j * n, 0, n * sizeof(float));
      continue;
    }
    float *dx = w.rows + j * n, *to = band + s.column[j] * n, *skip = w.skip + j * n;
    float* seen = ENCODER ? w.seen + (c.rank[s.atom[j]] - chunk.lo) * n : nullptr;
#pragma GCC unroll 4
    for (index_t i = 0; i < n; i += LANES) {
      vec g = load(dx + i);
      store(to + i, load(to + i) + g);
      if (!ENCODER) continue;
      g += load(skip + i);
      store(skip + i, g);
      store(seen + i, load(seen + i) + g);
      store(w.row_sums + i, load(w.row_sums + i) + g);
    }
  }
  if (ENCODER) to_lanes<P>(c, w.skip, w.out + t * n);
  else if (c.d_skip) write_rows<P>(c, s.count, w.rows, (T*)c.d_skip + at);
}

// dv of LANES slots; `out` holds dskip.
template <int P>
static inline void move_atoms(const Pairs& c, index_t t, const PairChunk& chunk, const PairBackwardScratch& w,
                              float* own) {
  const index_t n = padded<P>(c);
  const vec *skip = w.out + t * n, *g = w.geometry + t * GEOMETRY_PADDED;
  vec d[4] = {};
  for (index_t i = 0; i < n; ++i)
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) d[k] += c.geometry[k * n + i] * skip[i];
  vec factor = -2.f * g[3] * g[3] * d[3];
  for (int k = 0; k < 3; ++k) {
    float lanes[LANES];
    store(lanes, d[k] + factor * g[k]);
    for (index_t j = 0; j < LANES; ++j) {
      index_t atom = w.slots[t].atom[j];
      if (atom < 0) continue;
      own[k] += lanes[j];
      w.seen_position[(c.rank[atom] - chunk.lo) * SEEN + k] -= lanes[j];
    }
  }
}

template <int P, bool ENCODER, class T>
static inline void finish_bunch(const Pairs& c, index_t b, index_t row, const index_t* at, index_t count,
                                const PairChunk& chunk, const PairBackwardScratch& w, float* own) {
  through_layers<P>(c, count, w);
  for (index_t t = 0; t < count; ++t) {
    give_out<P, ENCODER, T>(c, b, row, at[t], t, chunk, w);
    if (ENCODER) move_atoms<P>(c, t, chunk, w, own);
  }
  if (ENCODER) outer_product(w.out, padded<P>(c), w.geometry, GEOMETRY_PADDED, count, w.geometry_sums);
}

template <int P, bool ENCODER, class T>
static void row_backward(const Pairs& c, index_t b, index_t row, const PairChunk& chunk, const PairBackwardScratch& w) {
  const index_t n = padded<P>(c);
  index_t count = 0, at[BUNCH];
  float own[3] = {};
  std::fill(w.row_sums, w.row_sums + n, 0.f);
  for (index_t slot = 0; slot < c.slots; slot += LANES) {
    if (look(c, b, row, slot, w.slots[count])) {
      activations<P, ENCODER, T>(c, b, row, slot, count, w);
      at[count++] = slot;
    } else if (c.d_skip) {
      T* to = (T*)c.d_skip + ((b * c.atoms + row) * c.slots + slot) * c.channels;
      std::memset(to, 0, w.slots[count].count * c.channels * sizeof(T));
    }
    if (count && (count == BUNCH || slot + LANES >= c.slots)) {
      finish_bunch<P, ENCODER, T>(c, b, row, at, count, chunk, w, own);
      count = 0;
    }
  }
  if (!ENCODER) return;
  std::copy(w.row_sums, w.row_sums + n, c.d_own + (b * c.atoms + row) * n);
  std::copy(own, own + 3, c.d_position + (b * c.atoms + row) * 3);
}

// What the threads saw of one atom, in their order.
static inline void add_seen(const Pairs& c, index_t b, index_t atom, const std::vector<PairChunk>& chunks,
                            const std::vector<PairBackwardScratch>& scratch) {
  float *other = c.d_other + (b * c.atoms + atom) * c.padded, *position = c.d_position + (b * c.atoms + atom) * 3;
  std::fill(other, other + c.padded, 0.f);
  for (size_t i = 0; i < chunks.size(); ++i) {
    index_t place = c.rank[atom] - chunks[i].lo;
    if (c.rank[atom] < chunks[i].lo || c.rank[atom] >= chunks[i].hi) continue;
    for (index_t k = 0; k < c.padded; ++k) other[k] += scratch[i].seen[place * c.padded + k];
    for (int k = 0; k < 3; ++k) position[k] += scratch[i].seen_position[place * SEEN + k];
  }
}

template <int P, bool ENCODER, class T>
static void make_pairs_backward(const Pairs& c) {
  const index_t n = padded<P>(c);
  std::vector<PairChunk> chunks;
  std::vector<PairBackwardScratch> scratch;
  float* work = c.work;
  for (index_t i = 0; i < c.threads; ++i) {
    chunks.emplace_back(c, i);
    scratch.emplace_back(c, chunks[i], work);
    work += PairBackwardScratch::floats(c, chunks[i]);
  }
  std::fill(c.d_weights, c.d_weights + LAYERS * n * n, 0.f);
  if (ENCODER) std::fill(c.d_geometry, c.d_geometry + GEOMETRY * n, 0.f);
  for (index_t b = 0; b < c.batch; ++b) {
#pragma omp parallel num_threads(c.threads)
    {
#pragma omp for schedule(static)
      for (index_t i = 0; i < c.residues * c.width * n; ++i) c.d_band[b * c.residues * c.width * n + i] = 0.f;
#pragma omp for schedule(static, 1)
      for (index_t i = 0; i < c.threads; ++i) {
        if (b) std::fill(scratch[i].seen, scratch[i].seen + chunks[i].seen_floats(c), 0.f);
        for (index_t at = chunks[i].begin; at < chunks[i].end; ++at)
          row_backward<P, ENCODER, T>(c, b, c.order[at], chunks[i], scratch[i]);
      }
      if (ENCODER) {
#pragma omp for schedule(static)
        for (index_t atom = 0; atom < c.atoms; ++atom) add_seen(c, b, atom, chunks, scratch);
      }
    }
  }
  for (const PairBackwardScratch& s : scratch) {
    for (index_t i = 0; i < LAYERS * n * n; ++i) c.d_weights[i] += sum(s.weight_sums[i]);
    for (index_t i = 0; ENCODER && i < n * GEOMETRY; ++i)
      c.d_geometry[i % GEOMETRY * n + i / GEOMETRY] += sum(s.geometry_sums[i / GEOMETRY * GEOMETRY_PADDED + i % GEOMETRY]);
  }
}
