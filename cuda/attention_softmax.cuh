// The online softmax of a forward kernel whose scores are C blocks in registers: 16·kBlocks queries
// of one warp by 8·kColumns keys.
#pragma once

#include "cuda/attention_common.cuh"

namespace proteus::cuda {

/// What a lane keeps for its queries: maximum of the scores so far in units of log₂, and its own
/// part of the sum.
template <int kBlocks>
struct Softmax {
  float top[kBlocks][2];
  float sum[kBlocks][2];
  __device__ Softmax() {
#pragma unroll
    for (int m = 0; m < kBlocks; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        top[m][h] = -kInfinity<float>;
        sum[m][h] = 0;
      }
    }
  }
};

/// Factors of a lane's rows.
template <int kBlocks>
using RowFactors = float[kBlocks][2];

/// Scores → weights exp2(scale·score − maximum); `shrink` becomes how what was summed before
/// shrinks to the new maximum.
template <int kBlocks, int kColumns>
__device__ inline void online_softmax(Accumulator<kBlocks, kColumns>& s, float scale,
                                      Softmax<kBlocks>& w, RowFactors<kBlocks>& shrink) {
#pragma unroll
  for (int m = 0; m < kBlocks; ++m) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float top = s[m][0][2 * h];
#pragma unroll
      for (int n = 0; n < kColumns; ++n) {
        top = fmaxf(top, fmaxf(s[m][n][2 * h], s[m][n][2 * h + 1]));
      }
      const float before = w.top[m][h];
      const float now = fmaxf(before, row_max(top) * scale);
      // A query that has seen nothing yet: −inf − 0 keeps its weights at exp2(−inf) = 0.
      const float base = now == -kInfinity<float> ? 0.0f : now;
      shrink[m][h] = exp2_fast(before - base);
      float sum = w.sum[m][h] * shrink[m][h];
#pragma unroll
      for (int n = 0; n < kColumns; ++n) {
#pragma unroll
        for (int e = 2 * h; e < 2 * h + 2; ++e) {
          s[m][n][e] = exp2_fast(fmaf(s[m][n][e], scale, -base));
          sum += s[m][n][e];
        }
      }
      w.top[m][h] = now;
      w.sum[m][h] = sum;
    }
  }
}

template <int kBlocks, int kColumns>
__device__ inline void scale_rows(Accumulator<kBlocks, kColumns>& o,
                                  const RowFactors<kBlocks>& factor) {
#pragma unroll
  for (int m = 0; m < kBlocks; ++m) {
#pragma unroll
    for (int d = 0; d < kColumns; ++d) {
#pragma unroll
      for (int e = 0; e < 4; ++e) o[m][d][e] *= factor[m][e / 2];
    }
  }
}

/// Divides by the denominator, sink included, and writes the warp's rows by way of its own part of
/// shared memory, `tile`. `first`: the warp's first query in t.
template <int kD, int kBlocks>
__device__ inline void finish(const AttentionFwd& a, const Tile& t, const WarpQueries& w, int first,
                              Softmax<kBlocks>& softmax, const Accumulator<kBlocks, kD / 8>& o,
                              bf16* tile) {
  const AttentionProblem& p = a.problem;
  const bool with_sink = p.sink && p.sink_scale > 0;
  const float sink = with_sink ? static_cast<const float*>(p.sink)[t.s.head] : -kInfinity<float>;
  float factor[kBlocks][2];
#pragma unroll
  for (int m = 0; m < kBlocks; ++m) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float top = softmax.top[m][h] * kLn2;
      const float base = fmaxf(top, sink);
      const bool blind = base == -kInfinity<float>;
      const float shrink = blind ? 0.0f : expf(top - base);
      float total = row_sum(softmax.sum[m][h]) * shrink;
      if (with_sink && !blind) total += static_cast<float>(p.sink_scale) * expf(sink - base);
      factor[m][h] = blind ? 0.0f : shrink / total;
      const int i = 16 * m + 8 * h + lane_id() / 4;
      if (lane_id() % 4 == 0 && i < w.count) {
        static_cast<float*>(a.lse)[w.slot + i] = blind ? -kInfinity<float> : base + logf(total);
      }
    }
  }
  store_rows<kD, kBlocks>(o, factor, tile,
                          row_of_out<bf16>(a.out, t.s.head, t.s.q_row + t.first + first),
                          a.out.row_stride, w.count);
}

}  // namespace proteus::cuda
