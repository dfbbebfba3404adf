// The part of the gradient that anchors get from queries far behind them. The last query sees the
// anchors like the first one, so that a block which adds up the gradient of the first keys would
// walk through the whole segment for the sake of a few rows, long after all others are done.
// Instead tiles of queries add up what they owe to the anchors in front of their windows, in f32,
// the tiles' sums are added up in order, and the pass over keys adds them to its own (in the end:
// sums that begin with something else than a product keep ptxas from overlapping products):
//   Σ_i dS_ij·q_i,  Σ_i P_ij·dO_i,  Σ_i dS_ij   over queries i with lo_i > j
#pragma once

#include "cuda/attention_common.cuh"

namespace proteus::cuda {

/// [segment, anchor, 2·D + 1]: the three sums side by side. No anchors: nothing was added up apart,
/// and the pass over keys takes care of them.
struct AnchorSums {
  const float* sums;
  int anchors;

  /// Adds what belongs to a warp's sums: of keys from `key` on, kB blocks of 16.
  template <int kD, int kB>
  __device__ void add(const Tile& t, int key, Accumulator<kB, kD / 8>& dk,
                      Accumulator<kB, kD / 8>& dv, float* dbias) const {
    if (key >= anchors) return;
#pragma unroll
    for (int half = 0; half < 2 * kB; ++half) {
      const int j = key + 8 * half + lane_id() / 4;
      if (j >= anchors) continue;
      const float* row = sums + (t.segment * anchors + j) * (2 * kD + 1);
#pragma unroll
      for (int n = 0; n < kD / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int d = 8 * n + lane_id() % 4 * 2 + e;
          dk[half / 2][n][half % 2 * 2 + e] += row[d];
          dv[half / 2][n][half % 2 * 2 + e] += row[kD + d];
        }
      }
      if (lane_id() % 4 == 0) dbias[half] += row[2 * kD];
    }
  }
};

/// Of bf16 with D = 32, 64 or 128. Makes no sums with dropout, with many anchors, or for short
/// segments, where the walk is short too.
class AnchorGradient {
 public:
  AnchorGradient(const AttentionBwd& a, const QueryStats<float>& stats);
  AnchorSums sums() const { return {static_cast<const float*>(memory_.data()), anchors_}; }
  /// The problem of the pass over keys: without those anchors.
  AttentionBwd rest(AttentionBwd a) const {
    if (anchors_ > 0) a.problem.anchors = 0;
    return a;
  }

 private:
  int anchors_;
  Storage memory_;  // the sums of segments, then those of tiles
};

}  // namespace proteus::cuda
