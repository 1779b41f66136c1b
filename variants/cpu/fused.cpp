// The C interface of the fused kernels; compiled by library.py at first use.
#include "backward.h"
#include "make_pairs_backward.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

// Pages of 2 MiB for a large fresh tensor: one page fault instead of 512, where the system allows it.
static void advise_large_pages(void* start, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const uintptr_t page = 4096;
  uintptr_t from = ((uintptr_t)start + page - 1) / page * page, to = ((uintptr_t)start + bytes) / page * page;
  if (to > from + (8u << 20)) madvise((void*)from, to - from, MADV_HUGEPAGE);
#endif
}

extern "C" int64_t work_floats(const Call* c, int32_t with_gradient) {
  if (!with_gradient) return ForwardWork::shared_floats(*c) + c->threads * Scratch::floats(*c);
  index_t floats = BackwardWork::shared_floats(*c);
  for (index_t i = 0; i < c->threads; ++i) floats += BackwardScratch::floats(*c) + 2 * c->keys * Chunk(*c, i).sum_floats(*c);
  return floats;
}

extern "C" void run_forward(const Call* c) {
  bool usual = c->channels == CHANNELS;
  if (c->pair_is_bfloat16) usual ? forward<CHANNELS, uint16_t>(*c) : forward<0, uint16_t>(*c);
  else usual ? forward<CHANNELS, float>(*c) : forward<0, float>(*c);
}

extern "C" void run_backward(const Call* c) {
  bool usual = c->channels == CHANNELS;
  size_t pairs = (size_t)c->entries * c->atoms * c->slots * c->channels;
  if (c->dp) advise_large_pages(c->dp, pairs * (c->pair_is_bfloat16 ? 2 : 4));
  if (c->pair_is_bfloat16) usual ? backward<CHANNELS, uint16_t>(*c) : backward<0, uint16_t>(*c);
  else usual ? backward<CHANNELS, float>(*c) : backward<0, float>(*c);
}

extern "C" int64_t pairs_work_floats(const Pairs* c, int32_t with_gradient) {
  if (!with_gradient) return c->threads * PairScratch::floats(*c);
  index_t floats = 0;
  for (index_t i = 0; i < c->threads; ++i) floats += PairBackwardScratch::floats(*c, PairChunk(*c, i));
  return floats;
}

template <bool ENCODER, class T>
static void run_pairs(const Pairs& c, bool backward) {
  bool usual = c.padded == CHANNELS;
  if (backward) usual ? make_pairs_backward<CHANNELS, ENCODER, T>(c) : make_pairs_backward<0, ENCODER, T>(c);
  else usual ? make_pairs<CHANNELS, ENCODER, T>(c) : make_pairs<0, ENCODER, T>(c);
}

extern "C" void run_pairs(const Pairs* c, int32_t backward) {
  size_t bytes = (size_t)c->batch * c->atoms * c->slots * c->channels * (c->is_bfloat16 ? 2 : 4);
  if (c->is_encoder && !backward) advise_large_pages(c->skip, bytes);
  if (!backward) advise_large_pages(c->out, bytes);
  if (backward && c->d_skip) advise_large_pages(c->d_skip, bytes);
  if (c->is_bfloat16) c->is_encoder ? run_pairs<true, uint16_t>(*c, backward) : run_pairs<false, uint16_t>(*c, backward);
  else c->is_encoder ? run_pairs<true, float>(*c, backward) : run_pairs<false, float>(*c, backward);
}
