// How the backward kernels for Hopper turn scores into weights and slopes, in registers: 64 rows of
// a warpgroup that stay against tiles of kMoving rows that pass by. Statistics and masks belong to
// queries, the bias to keys; either are the rows or the columns.
#pragma once

#include "cuda/hopper_pipeline.cuh"

namespace proteus::cuda {

constexpr int kMoving = 64;  // rows per tile that passes by
constexpr int kColumns = kMoving / 8;

/// Of all queries: what the pass over queries finds and the pass over keys reads.
struct Stats {
  float* lse;
  float* delta;
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

/// What is known of a lane's columns: numbers 8·n + 2·(lane % 4) and the next. Read while products
/// are under way, so that nothing waits for them.
struct ColumnValues {
  float2 of[kColumns];
  __device__ ColumnValues(const float* all, float factor) {
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
      of[n] = *reinterpret_cast<const float2*>(all + 8 * n + lane_id() % 4 * 2);
      of[n].x *= factor;
      of[n].y *= factor;
    }
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

/// s ← exp2(scale·s + bias − lse) with statistics by column; lse in units of log₂.
template <bool kBias>
__device__ void weigh(Accumulator<1, kColumns>& s, float scale, const ColumnValues& lse,
                      const RowBias<kBias>& row) {
#pragma unroll
  for (int n = 0; n < kColumns; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float shift = e % 2 == 0 ? -lse.of[n].x : -lse.of[n].y;
      s[0][n][e] = exp2_fast(fmaf(s[0][n][e], scale, kBias ? row.bias[e / 2] + shift : shift));
    }
  }
}
/// dp ← s·(dp − δ).
__device__ inline void slopes(Accumulator<1, kColumns>& dp, const Accumulator<1, kColumns>& s,
                              const ColumnValues& delta) {
#pragma unroll
  for (int n = 0; n < kColumns; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      dp[0][n][e] = s[0][n][e] * (dp[0][n][e] - (e % 2 == 0 ? delta.of[n].x : delta.of[n].y));
    }
  }
}

/// What is known of a tile of queries beside their rows, in shared memory.
template <int kRows>
struct QueryRows {
  float lse[kRows];
  float delta[kRows];
  int lo[kRows];
  int hi[kRows];
};

/// Log-sum-exp (in units of log₂) and δ of the queries of a lane's sums, by row.
struct RowStats {
  float lse[2], delta[2];
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
