// Dropout of attention in the accumulator blocks of a warp: every draw of four keys is made by one
// lane, and those that hold the four exchange it.
#pragma once

#include "cuda/attention_common.cuh"

namespace proteus::cuda {

/// The dropout of a problem, in a replay of recorded work with the streams of that replay.
struct Draws : Dropout<float> {
  __device__ Draws(const AttentionProblem& p, const std::uint64_t* later) : Dropout<float>(p) {
    if (later) stream += *later;
  }
};

/// Factors of one accumulator block of a warp, 16 queries from `slot` on by 8 keys from `key` on.
/// Two neighbouring lanes hold the four keys of one draw: the even one draws for the upper row and
/// the odd one for the lower, and they swap halves.
__device__ inline void draw_rows(const Draws& dropout, std::int64_t slot, int key,
                                 float (&keep)[4]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const bool odd = lane % 2 != 0;
  const Philox4 r = dropout.group(slot + lane / 4 + (odd ? 8 : 0), key + lane % 4 * 2);
  const std::uint32_t a = __shfl_xor_sync(kAllLanes, odd ? r.v[0] : r.v[2], 1);
  const std::uint32_t b = __shfl_xor_sync(kAllLanes, odd ? r.v[1] : r.v[3], 1);
  keep[0] = dropout.factor(odd ? a : r.v[0]);
  keep[1] = dropout.factor(odd ? b : r.v[1]);
  keep[2] = dropout.factor(odd ? r.v[2] : a);
  keep[3] = dropout.factor(odd ? r.v[3] : b);
}

/// The same of the transposed block, 16 keys from `key` on by 8 queries from `slot` on. Four lanes,
/// 4 and 8 apart, hold the four keys of a draw, for two queries in each half of the rows: every one
/// draws once, and what they drew is transposed among them.
__device__ inline void draw_columns(const Draws& dropout, std::int64_t slot, int key,
                                    float (&keep)[4]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int mine = lane / 4 % 4;  // its key in a draw, and the element that it draws for
  const Philox4 r =
      dropout.group(slot + lane % 4 * 2 + mine % 2, key + mine / 2 * 8 + lane / 16 * 4);
  std::uint32_t v[4] = {r.v[0], r.v[1], r.v[2], r.v[3]};
#pragma unroll
  for (int step = 1; step <= 2; step *= 2) {
    const bool upper = (mine & step) != 0;
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      const int low = step == 1 ? 2 * pair : pair;
      const int high = low + step;
      const std::uint32_t other = __shfl_xor_sync(kAllLanes, upper ? v[low] : v[high], 4 * step);
      v[low] = upper ? other : v[low];
      v[high] = upper ? v[high] : other;
    }
  }
#pragma unroll
  for (int e = 0; e < 4; ++e) keep[e] = dropout.factor(v[e]);
}

}  // namespace proteus::cuda
