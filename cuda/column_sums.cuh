// Sums over the rows of matrices [A, R, C], K at a time, in an order that depends on the sizes
// alone: chunks of rows are summed by blocks of 32 columns, the chunks' sums by one more pass.
#pragma once

#include "cuda/kernel.cuh"

namespace proteus::cuda {

constexpr int kColumnTile = 32;

/// Rows that a block sums at once, in the pass over the input and in the one over the chunks.
constexpr int kRowLanes = 8;
constexpr int kChunkLanes = 32;

// Block (x, y) has columns [tile·32, …) of matrix a with x = a·tiles + tile, and rows
// [y·rows_each, …). term(a, r, c, add) sets what (r, c) adds to each sum; finish(a, chunk, c, sums)
// stores them.
template <class S, int K, int kLanes, class Term, class Finish>
__global__ void __launch_bounds__(kColumnTile* kLanes)
    column_sums_kernel(std::int64_t R, std::int64_t C, std::int64_t tiles, std::int64_t rows_each,
                       Term term, Finish finish) {
  __shared__ S partial[K][kLanes][kColumnTile + 1];
  const std::int64_t a = blockIdx.x / tiles;
  const std::int64_t c = blockIdx.x % tiles * kColumnTile + threadIdx.x;
  const std::int64_t chunk = blockIdx.y;
  const std::int64_t end = min(R, (chunk + 1) * rows_each);
  S sum[K] = {};
  if (c < C) {
#pragma unroll 4
    for (std::int64_t r = chunk * rows_each + threadIdx.y; r < end; r += kLanes) {
      S add[K];
      term(a, r, c, add);
#pragma unroll
      for (int k = 0; k < K; ++k) sum[k] += add[k];
    }
  }
#pragma unroll
  for (int k = 0; k < K; ++k) partial[k][threadIdx.y][threadIdx.x] = sum[k];
  __syncthreads();
  if (threadIdx.y > 0 || c >= C) return;
#pragma unroll
  for (int k = 0; k < K; ++k) {
    sum[k] = partial[k][0][threadIdx.x];
    for (int lane = 1; lane < kLanes; ++lane) sum[k] += partial[k][lane][threadIdx.x];
  }
  finish(a, chunk, c, sum);
}

// The sums of chunk y go to partial[a, y, k, c].
template <class S, int K>
struct StorePartial {
  S* partial;
  std::int64_t chunks, C;

  __device__ void operator()(std::int64_t a, std::int64_t chunk, std::int64_t c,
                             const S (&sum)[K]) const {
#pragma unroll
    for (int k = 0; k < K; ++k) partial[((a * chunks + chunk) * K + k) * C + c] = sum[k];
  }
};

template <class S, int K>
struct LoadPartial {
  const S* partial;
  std::int64_t chunks, C;

  __device__ void operator()(std::int64_t a, std::int64_t chunk, std::int64_t c,
                             S (&add)[K]) const {
#pragma unroll
    for (int k = 0; k < K; ++k) add[k] = partial[((a * chunks + chunk) * K + k) * C + c];
  }
};

/// finish(a, 0, c, sums) of partial [A, chunks, K, C], the sums of the chunks in their order.
template <class S, int K, class Finish>
void sum_chunks(const char* name, std::int64_t A, std::int64_t chunks, std::int64_t C,
                const S* partial, Finish finish) {
  const std::int64_t tiles = ceil_div(C, kColumnTile);
  using Load = LoadPartial<S, K>;
  launch(name, column_sums_kernel<S, K, kChunkLanes, Load, Finish>,
         static_cast<unsigned>(A * tiles), dim3(kColumnTile, kChunkLanes), 0, chunks, C, tiles,
         chunks, Load{partial, chunks, C}, finish);
}

/// For every matrix a and column c: finish(a, 0, c, sums), sums[k] = Σ_r term(a, r, c)_k in S.
/// Every (a, r, c) is visited once; R, C and A are positive.
template <class S, int K, class Term, class Finish>
void column_sums(const char* name, std::int64_t A, std::int64_t R, std::int64_t C, Term term,
                 Finish finish) {
  constexpr std::int64_t kBlocksWanted = 1024;
  constexpr std::int64_t kLeastRows = 64;  // fewer are not worth a second pass
  const std::int64_t tiles = ceil_div(C, kColumnTile);
  const std::int64_t most = std::max<std::int64_t>(1, kBlocksWanted / (A * tiles));
  const std::int64_t rows_each = std::max(kLeastRows, ceil_div(R, most));
  const std::int64_t chunks = ceil_div(R, rows_each);
  const auto blocks = static_cast<unsigned>(A * tiles);
  const dim3 grid(blocks, static_cast<unsigned>(chunks));
  const dim3 block(kColumnTile, kRowLanes);
  if (chunks == 1) {
    launch(name, column_sums_kernel<S, K, kRowLanes, Term, Finish>, grid, block, 0, R, C, tiles,
           rows_each, term, finish);
    return;
  }
  const Storage memory = scratch(static_cast<std::size_t>(A * chunks * K * C) * sizeof(S));
  S* partial = static_cast<S*>(memory.data());
  using Store = StorePartial<S, K>;
  launch(name, column_sums_kernel<S, K, kRowLanes, Term, Store>, grid, block, 0, R, C, tiles,
         rows_each, term, Store{partial, chunks, C});
  sum_chunks<S, K>(name, A, chunks, C, partial, finish);
}

}  // namespace proteus::cuda
