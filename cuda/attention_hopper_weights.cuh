// How the backward kernels for Hopper turn scores into weights and slopes, in registers: 64 rows of
// a warpgroup that stay against tiles of kMoving rows that pass by. Statistics and masks belong to
// queries, the bias to keys; either are the rows or the columns.
#pragma once

#include <bit>

#include "cuda/hopper_pipeline.cuh"

namespace proteus::cuda {

constexpr int kMoving = 64;  // rows per tile that passes by
constexpr int kColumns = kMoving / 8;

/// Of all queries.
struct Stats {
  const float* lse;
  const float* delta;
};

// What is known of the columns of a tile lies in shared memory by lane: that of a lane's columns
// side by side, with a gap against bank conflicts.
constexpr int kLaneColumns = 2 * kColumns;
constexpr int kLaneStride = kLaneColumns + 4;
constexpr int kColumnValues = 4 * kLaneStride;
__device__ inline int place_of_column(int i) { return i % 8 / 2 * kLaneStride + i / 8 * 2 + i % 2; }

/// That of a lane's columns, in 16 bytes at a time: column e of block n is value 2·n + e.
template <class T>
struct ColumnsOfLane {
  T value[kLaneColumns];
  __device__ explicit ColumnsOfLane(const T* of_tile) {
    const T* own = of_tile + lane_id() % 4 * kLaneStride;
#pragma unroll
    for (int i = 0; i < kLaneColumns; i += 4) {
      const uint4 four = *reinterpret_cast<const uint4*>(own + i);
      const std::uint32_t bits[] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int k = 0; k < 4; ++k) value[i + k] = std::bit_cast<T>(bits[k]);
    }
  }
};

/// −inf where a query (a column) does not see a key (a row, counted from `key`).
__device__ inline void hide_queries(Accumulator<1, kColumns>& s, const int* all_lo,
                                    const int* all_hi, int key, int anchors) {
  const ColumnsOfLane<int> lo(all_lo);
  const ColumnsOfLane<int> hi(all_hi);
#pragma unroll
  for (int n = 0; n < kColumns; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int i = 2 * n + e % 2;
      const int j = key + 8 * (e / 2) + lane_id() / 4;
      if (!sees(j, lo.value[i], hi.value[i], anchors)) s[0][n][e] = -kInfinity<float>;
    }
  }
}

/// Log-sum-exp and δ of the queries of a tile's columns.
struct ColumnStats {
  const float* lse;
  const float* delta;
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
  const ColumnsOfLane<float> lse(stats.lse);
#pragma unroll
  for (int n = 0; n < kColumns; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float shift = -lse.value[2 * n + e % 2] * kLog2E;
      s[0][n][e] = exp2_fast(fmaf(s[0][n][e], scale, kBias ? row.bias[e / 2] + shift : shift));
    }
  }
}
/// dp ← s·(dp − δ).
__device__ inline void slopes(Accumulator<1, kColumns>& dp, const Accumulator<1, kColumns>& s,
                              const ColumnStats& stats) {
  const ColumnsOfLane<float> delta(stats.delta);
#pragma unroll
  for (int n = 0; n < kColumns; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      dp[0][n][e] = s[0][n][e] * (dp[0][n][e] - delta.value[2 * n + e % 2]);
    }
  }
}

/// Log-sum-exp (in units of log₂) and δ of a lane's queries where they stay.
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
/// The same by row, with the bias of the columns.
template <bool kBias>
__device__ void weigh(Accumulator<1, kColumns>& s, float scale, const RowStats& stats,
                      const float* bias) {
  if constexpr (kBias) {
    const ColumnsOfLane<float> column(bias);
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float shift = fmaf(column.value[2 * n + e % 2], kLog2E, -stats.lse[e / 2]);
        s[0][n][e] = exp2_fast(fmaf(s[0][n][e], scale, shift));
      }
    }
  } else {
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        s[0][n][e] = exp2_fast(fmaf(s[0][n][e], scale, -stats.lse[e / 2]));
      }
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
