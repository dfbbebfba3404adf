// Dropout of attention in the accumulator blocks of a warp: every draw of eight keys is made by one
// lane, and the lanes that hold their weights exchange what they drew.
#pragma once

#include "cuda/attention_common.cuh"

namespace proteus::cuda {

/// The dropout of a problem, in a replay of recorded work with the streams of that replay.
struct Draws : Dropout<float> {
  __device__ Draws(const AttentionProblem& p, const std::uint64_t* later) : Dropout<float>(p) {
    if (later) stream += *later;
  }
};

/// Of four lanes, `stride` apart, this one is number `mine` and gets word `mine` of each: v[i] of
/// lane i.
__device__ inline void transpose_words(std::uint32_t (&v)[4], int mine, int stride) {
#pragma unroll
  for (int step = 1; step <= 2; step *= 2) {
    const bool upper = (mine & step) != 0;
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      const int low = step == 1 ? 2 * pair : pair;
      const int high = low + step;
      const std::uint32_t other =
          __shfl_xor_sync(kAllLanes, upper ? v[low] : v[high], stride * step);
      v[low] = upper ? other : v[low];
      v[high] = upper ? v[high] : other;
    }
  }
}

/// Factors of two neighbouring accumulator blocks of a warp, 16 queries from `slot` on by twice 8
/// keys from `key` on. The four lanes of a row hold two draws of it and two of the row 8 below, and
/// make one each.
__device__ inline void draw_rows(const Draws& dropout, std::int64_t slot, int key,
                                 float (&keep)[2][4]) {
  const int mine = lane_id() % 4;
  const Philox4 r = dropout.draw(slot + lane_id() / 4 + mine / 2 * 8, key + mine % 2 * 8);
  std::uint32_t v[4] = {r.v[0], r.v[1], r.v[2], r.v[3]};
  transpose_words(v, mine, 1);
#pragma unroll
  for (int block = 0; block < 2; ++block) {
#pragma unroll
    for (int e = 0; e < 4; ++e) keep[block][e] = dropout.of_half(v[e / 2 * 2 + block], e % 2);
  }
}

/// The same of transposed blocks, 16 keys from `key` on by twice 8 queries from `slot` on. Eight
/// lanes, 4 apart, hold the eight keys of a draw, for two queries of each block and in each half of
/// the rows: each makes one of these eight draws. Neighbours first swap halves of words, so that
/// every word holds one key of two queries.
__device__ inline void draw_columns(const Draws& dropout, std::int64_t slot, int key,
                                    float (&keep)[2][4]) {
  const int mine = lane_id() / 4;  // its key in a draw, and the draw that it makes
  const Philox4 r =
      dropout.draw(slot + mine / 4 * 8 + lane_id() % 4 * 2 + mine % 2, key + mine / 2 % 2 * 8);
  std::uint32_t v[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    constexpr unsigned kLower = 0x5410;
    constexpr unsigned kUpper = 0x7632;
    const std::uint32_t other = __shfl_xor_sync(kAllLanes, r.v[i], 4);
    v[i] = mine % 2 == 0 ? __byte_perm(r.v[i], other, kLower) : __byte_perm(other, r.v[i], kUpper);
  }
  transpose_words(v, mine / 2, 8);
#pragma unroll
  for (int block = 0; block < 2; ++block) {
#pragma unroll
    for (int e = 0; e < 4; ++e) keep[block][e] = dropout.of_half(v[2 * block + e / 2], e % 2);
  }
}

}  // namespace proteus::cuda
