// How the backward kernels for Hopper turn scores into weights and slopes, in registers: 64 rows of
// a warpgroup that stay against tiles of kMoving rows that pass by. Statistics and masks belong to
// queries, the bias to keys; either are the rows or the columns.
#pragma once

#include "cuda/hopper_pipeline.cuh"

namespace proteus::cuda {

constexpr int kMoving = 64;  // rows per tile that passes by
constexpr int kColumns = kMoving / 8;

/// Of all queries.
struct Stats {
  const float* lse;
  const float* delta;
};

/// −inf where a query (a column) does not see a key (a row, counted from `key`).
__device__ inline void hide_queries(Accumulator<1, kColumns>& s, const int* all_lo,
                                    const int* all_hi, int key, int anchors) {
#pragma unroll
  for (int n = 0; n < kColumns; ++n) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int i = 8 * n + lane_id() % 4 * 2 + e;
      const int lo = all_lo[i];
      const int hi = all_hi[i];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int j = key + 8 * h + lane_id() / 4;
        if (!sees(j, lo, hi, anchors)) s[0][n][2 * h + e] = -kInfinity<float>;
      }
    }
  }
}

/// Log-sum-exp (in units of log₂) and δ of the queries of a lane's sums: of its columns, or of its
/// rows.
struct ColumnStats {
  const float* all_lse;
  const float* all_delta;
  __device__ float2 lse(int n) const { return pair(all_lse, n, kLog2E); }
  __device__ float2 delta(int n) const { return pair(all_delta, n, 1); }
  __device__ static float2 pair(const float* x, int n, float factor) {
    const float2 two = *reinterpret_cast<const float2*>(x + 8 * n + lane_id() % 4 * 2);
    return {two.x * factor, two.y * factor};
  }
};

/// The bias of a lane's keys where they stay, in units of log₂, and its gradient.
template <bool kBias>
struct RowBias {
  float bias[2] = {};
  float sum[2] = {};
  __device__ RowBias(const void* key_bias, std::int64_t row, int count) {
    if constexpr (kBias) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int i = 8 * h + lane_id() / 4;
        if (i < count) bias[h] = static_cast<const float*>(key_bias)[row + i] * kLog2E;
      }
    }
  }
  __device__ void add(const Accumulator<1, kColumns>& slope) {
    if constexpr (kBias) {
#pragma unroll
      for (int n = 0; n < kColumns; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) sum[e / 2] += slope[0][n][e];
      }
    }
  }
  __device__ void store(void* dkey_bias, std::int64_t row, int count) const {
    if constexpr (kBias) {
      if (!dkey_bias) return;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float total = row_sum(sum[h]);
        const int i = 8 * h + lane_id() / 4;
        if (lane_id() % 4 == 0 && i < count) static_cast<float*>(dkey_bias)[row + i] = total;
      }
    }
  }
};

/// s ← exp2(scale·s + bias − lse) with statistics by column.
template <bool kBias>
__device__ void weigh(Accumulator<1, kColumns>& s, float scale, const ColumnStats& stats,
                      const RowBias<kBias>& row) {
#pragma unroll
  for (int n = 0; n < kColumns; ++n) {
    const float2 lse = stats.lse(n);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float shift = e % 2 == 0 ? -lse.x : -lse.y;
      s[0][n][e] = exp2_fast(fmaf(s[0][n][e], scale, kBias ? row.bias[e / 2] + shift : shift));
    }
  }
}
/// dp ← s·(dp − δ).
__device__ inline void slopes(Accumulator<1, kColumns>& dp, const Accumulator<1, kColumns>& s,
                              const ColumnStats& stats) {
#pragma unroll
  for (int n = 0; n < kColumns; ++n) {
    const float2 delta = stats.delta(n);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      dp[0][n][e] = s[0][n][e] * (dp[0][n][e] - (e % 2 == 0 ? delta.x : delta.y));
    }
  }
}

/// The same by row.
struct RowStats {
  float lse[2], delta[2];
  __device__ RowStats(const Stats& stats, const WarpQueries& w) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int i = 8 * h + lane_id() / 4;
      const bool inside = i < w.count;
      lse[h] = inside ? stats.lse[w.slot + i] * kLog2E : kInfinity<float>;
      delta[h] = inside ? stats.delta[w.slot + i] : 0.0f;
    }
  }
};
/// `bias` of the columns, null for none.
template <bool kBias>
__device__ void weigh(Accumulator<1, kColumns>& s, float scale, const RowStats& stats,
                      const float* bias) {
#pragma unroll
  for (int n = 0; n < kColumns; ++n) {
    float2 two{0, 0};
    if constexpr (kBias) {
      two = *reinterpret_cast<const float2*>(bias + 8 * n + lane_id() % 4 * 2);
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float shift = -stats.lse[e / 2];
      const float column = e % 2 == 0 ? two.x : two.y;
      s[0][n][e] = exp2_fast(fmaf(s[0][n][e], scale, kBias ? fmaf(column, kLog2E, shift) : shift));
    }
  }
}
__device__ inline void slopes(Accumulator<1, kColumns>& dp, const Accumulator<1, kColumns>& s,
                              const RowStats& stats) {
#pragma unroll
  for (int n = 0; n < kColumns; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) dp[0][n][e] = s[0][n][e] * (dp[0][n][e] - stats.delta[e / 2]);
  }
}

}  // namespace proteus::cuda
