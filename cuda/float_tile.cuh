// Tiles of f32 rows in shared memory, and products of them by a block of 16×16 threads that owns 64
// rows of the result: thread (y, x) has rows 4·y to 4·y + 3, and of products of rows the columns x,
// x
// + 16, …
#pragma once

#include "cuda/attention_common.cuh"

namespace proteus::cuda {

constexpr int kSide = 16;
constexpr int kThreads = kSide * kSide;
constexpr int kEach = 4;  // rows of a thread
constexpr int kRows = kSide * kEach;

/// Row strides in shared memory: 16-byte accesses to neighbouring rows touch all banks.
template <int kWidth>
constexpr int kStride = kWidth + 4;
template <int kCount, int kD>
struct FloatTile {
  alignas(16) float x[kCount * kStride<kD>];
  __device__ const float* row(int i) const { return x + i * kStride<kD>; }
  __device__ float* row(int i) { return x + i * kStride<kD>; }
  /// Starts copying the first `count` rows; the others become zero.
  __device__ void load(const float* from, std::int64_t stride, int count) {
    constexpr int kChunks = kD / 4;
#pragma unroll
    for (int i = 0; i < kCount * kChunks / kThreads; ++i) {
      const int c = i * kThreads + static_cast<int>(threadIdx.x);
      const int r = c / kChunks;
      const int d = c % kChunks * 4;
      const bool inside = r < count;
      copy_async_16(row(r) + d, from + (inside ? r : 0) * stride + d, inside);
    }
  }
};

__device__ inline void arrive() {
  commit_copies();
  wait_copies<0>();
  __syncthreads();
}

__device__ inline int thread_x() { return static_cast<int>(threadIdx.x) % kSide; }
__device__ inline int thread_row() { return static_cast<int>(threadIdx.x) / kSide * kEach; }

__device__ inline float dot4(float4 a, float4 b, float sum) {
  return fmaf(a.x, b.x, fmaf(a.y, b.y, fmaf(a.z, b.z, fmaf(a.w, b.w, sum))));
}

/// s[r][c] = rows of a times rows of b.
template <int kD, int kA, int kB, int kC>
__device__ inline void dots(float (&s)[kEach][kC], const FloatTile<kA, kD>& a,
                            const FloatTile<kB, kD>& b) {
#pragma unroll
  for (int r = 0; r < kEach; ++r) {
#pragma unroll
    for (int c = 0; c < kC; ++c) s[r][c] = 0;
  }
#pragma unroll 4
  for (int d = 0; d < kD; d += 4) {
    float4 x[kEach];
    float4 y[kC];
#pragma unroll
    for (int r = 0; r < kEach; ++r) {
      x[r] = *reinterpret_cast<const float4*>(a.row(thread_row() + r) + d);
    }
#pragma unroll
    for (int c = 0; c < kC; ++c) {
      y[c] = *reinterpret_cast<const float4*>(b.row(thread_x() + kSide * c) + d);
    }
#pragma unroll
    for (int r = 0; r < kEach; ++r) {
#pragma unroll
      for (int c = 0; c < kC; ++c) s[r][c] = dot4(x[r], y[c], s[r][c]);
    }
  }
}

/// What a thread has of sums [kRows, kD]: its rows, and kVector neighbouring columns out of every
/// 16·kVector.
template <int kD>
struct Sums {
  static constexpr int kVector = kD >= 64 ? 4 : 2;
  static constexpr int kRuns = kD / (kSide * kVector);
  float x[kEach][kRuns][kVector];

  __device__ Sums() {
#pragma unroll
    for (int r = 0; r < kEach; ++r) {
#pragma unroll
      for (int n = 0; n < kRuns; ++n) {
#pragma unroll
        for (int v = 0; v < kVector; ++v) x[r][n][v] = 0;
      }
    }
  }
  __device__ static int column(int n) { return (n * kSide + thread_x()) * kVector; }
  __device__ void scale(int r, float factor) {
#pragma unroll
    for (int n = 0; n < kRuns; ++n) {
#pragma unroll
      for (int v = 0; v < kVector; ++v) x[r][n][v] *= factor;
    }
  }
  /// x += weights [kRows, kC·16] · b.
  template <int kB>
  __device__ void add(const FloatTile<kRows, kB>& weights, const FloatTile<kB, kD>& b) {
#pragma unroll 4
    for (int j = 0; j < kB; ++j) {
      float w[kEach];
#pragma unroll
      for (int r = 0; r < kEach; ++r) w[r] = weights.row(thread_row() + r)[j];
#pragma unroll
      for (int n = 0; n < kRuns; ++n) {
        const float* from = b.row(j) + column(n);
#pragma unroll
        for (int v = 0; v < kVector; ++v) {
#pragma unroll
          for (int r = 0; r < kEach; ++r) x[r][n][v] = fmaf(w[r], from[v], x[r][n][v]);
        }
      }
    }
  }
  __device__ void store(float* to, std::int64_t stride, int count) const {
#pragma unroll
    for (int r = 0; r < kEach; ++r) {
      if (thread_row() + r >= count) continue;
#pragma unroll
      for (int n = 0; n < kRuns; ++n) {
#pragma unroll
        for (int v = 0; v < kVector; ++v) {
          to[(thread_row() + r) * stride + column(n) + v] = x[r][n][v];
        }
      }
    }
  }
};

template <int kC>
__device__ inline void keep_weights(FloatTile<kRows, kC * kSide>& tile,
                                    const float (&s)[kEach][kC]) {
#pragma unroll
  for (int r = 0; r < kEach; ++r) {
#pragma unroll
    for (int c = 0; c < kC; ++c) tile.row(thread_row() + r)[thread_x() + kSide * c] = s[r][c];
  }
}

/// Over the 16 threads of a row.
template <class Op>
__device__ inline float over_row(float x, Op op) {
#pragma unroll
  for (int step = kSide / 2; step > 0; step /= 2) x = op(x, __shfl_xor_sync(kAllLanes, x, step));
  return x;
}
__device__ inline float row_total(float x) {
  return over_row(x, [](float a, float b) { return a + b; });
}

}  // namespace proteus::cuda
