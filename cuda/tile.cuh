// Tiles of bf16 rows in shared memory, and products of them by one warp.
//
// A tile [rows, kD] keeps 16-byte chunks; chunk c of row r lies where chunk c ^ (r % 8) would
// (rows of 64 bytes: c ^ (r / 2 % 4)), so that the eight rows of a block touch all 32 banks.
#pragma once

#include "cuda/kernel.cuh"
#include "cuda/mma.cuh"

namespace proteus::cuda {

constexpr int kChunk = 8;  // bf16 numbers in 16 bytes

/// Offset of a chunk in a tile of width kD, in elements.
template <int kD>
__device__ inline int swizzled(int row, int chunk) {
  static_assert(kD == 32 || kD % 64 == 0);
  const int x = kD == 32 ? (row >> 1) & 3 : row & 7;
  return row * kD + ((chunk ^ x) * kChunk);
}

/// Starts copying rows [0, count) of width kD, `stride` apart; the tile's other rows become zero.
template <int kRows, int kD, int kThreads>
__device__ inline void load_tile(bf16* tile, const bf16* from, std::int64_t stride, int count) {
  constexpr int kChunks = kD / kChunk;
  constexpr int kPass = kThreads / kChunks;  // rows at a time
  static_assert(kThreads % kChunks == 0 && kRows % kPass == 0);
  const int first = static_cast<int>(threadIdx.x) / kChunks;
  const int chunk = static_cast<int>(threadIdx.x) % kChunks;
  from += first * stride + chunk * kChunk;
#pragma unroll
  for (int row = 0; row < kRows; row += kPass) {
    copy_async_16(tile + swizzled<kD>(first + row, chunk), from, first + row < count);
    from += kPass * stride;
  }
}

/// The A block at (row, 16·k) of a tile.
template <int kD>
__device__ inline void load_a(std::uint32_t (&a)[4], const bf16* tile, int row, int k) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  load_blocks(a, tile + swizzled<kD>(row + lane % 16, 2 * k + lane / 16));
}

/// Two B blocks of tileᵀ: columns are the tile's rows [row, row + 16), k its columns from 16·k.
/// Block n uses b[2·n], b[2·n + 1].
template <int kD>
__device__ inline void load_b_rows(std::uint32_t (&b)[4], const bf16* tile, int row, int k) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  load_blocks(b, tile + swizzled<kD>(row + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
}

/// Two B blocks of the tile itself: k its rows [row, row + 16), columns from 16·column.
template <int kD>
__device__ inline void load_b_columns(std::uint32_t (&b)[4], const bf16* tile, int row,
                                      int column) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  load_blocks_transposed(b, tile + swizzled<kD>(row + lane % 16, 2 * column + lane / 16));
}

/// C blocks [16·kBlocks, 8·kColumns] of one warp.
template <int kBlocks, int kColumns>
using Accumulator = float[kBlocks][kColumns][4];

template <int kBlocks, int kColumns>
__device__ inline void clear(Accumulator<kBlocks, kColumns>& c) {
#pragma unroll
  for (int m = 0; m < kBlocks; ++m) {
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) c[m][n][e] = 0;
    }
  }
}

/// The A blocks of some rows of a tile: read from shared memory whenever they are used, …
template <int kD, int kBlocks>
struct SharedRows {
  const bf16* tile;
  int row;
  __device__ void block(std::uint32_t (&a)[kBlocks][4], int k) const {
#pragma unroll
    for (int m = 0; m < kBlocks; ++m) load_a<kD>(a[m], tile, row + 16 * m, k);
  }
};
/// … or kept in registers.
template <int kD, int kBlocks>
struct HeldRows {
  std::uint32_t held[kD / 16][kBlocks][4];
  __device__ HeldRows(const bf16* tile, int row) {
#pragma unroll
    for (int k = 0; k < kD / 16; ++k) {
#pragma unroll
      for (int m = 0; m < kBlocks; ++m) load_a<kD>(held[k][m], tile, row + 16 * m, k);
    }
  }
  __device__ void block(std::uint32_t (&a)[kBlocks][4], int k) const {
#pragma unroll
    for (int m = 0; m < kBlocks; ++m) {
#pragma unroll
      for (int e = 0; e < 4; ++e) a[m][e] = held[k][m][e];
    }
  }
};

/// c = rows · bᵀ, with the first 8·kColumns rows of the tile b.
template <int kD, int kBlocks, int kColumns, class Rows>
__device__ inline void multiply_transposed(Accumulator<kBlocks, kColumns>& c, const Rows& rows,
                                           const bf16* b) {
  clear(c);
#pragma unroll
  for (int k = 0; k < kD / 16; ++k) {
    std::uint32_t left[kBlocks][4];
    rows.block(left, k);
#pragma unroll
    for (int n = 0; n < kColumns; n += 2) {
      std::uint32_t right[4];
      load_b_rows<kD>(right, b, 8 * n, k);
#pragma unroll
      for (int m = 0; m < kBlocks; ++m) {
        mma(c[m][n], left[m], right[0], right[1]);
        mma(c[m][n + 1], left[m], right[2], right[3]);
      }
    }
  }
}

/// c += p·b, where p holds C blocks (rounded to bf16) and b is a tile of 8·kColumns rows.
template <int kD, int kBlocks, int kColumns>
__device__ inline void add_product(Accumulator<kBlocks, kD / 8>& c,
                                   const Accumulator<kBlocks, kColumns>& p, const bf16* b) {
#pragma unroll
  for (int k = 0; k < kColumns / 2; ++k) {
    std::uint32_t left[kBlocks][4];
#pragma unroll
    for (int m = 0; m < kBlocks; ++m) {
      left[m][0] = pack_bf16(p[m][2 * k][0], p[m][2 * k][1]);
      left[m][1] = pack_bf16(p[m][2 * k][2], p[m][2 * k][3]);
      left[m][2] = pack_bf16(p[m][2 * k + 1][0], p[m][2 * k + 1][1]);
      left[m][3] = pack_bf16(p[m][2 * k + 1][2], p[m][2 * k + 1][3]);
    }
#pragma unroll
    for (int d = 0; d < kD / 16; ++d) {
      std::uint32_t right[4];
      load_b_columns<kD>(right, b, 16 * k, d);
#pragma unroll
      for (int m = 0; m < kBlocks; ++m) {
        mma(c[m][2 * d], left[m], right[0], right[1]);
        mma(c[m][2 * d + 1], left[m], right[2], right[3]);
      }
    }
  }
}

/// Writes the warp's C blocks, row r times factor[r's block][r's half], as bf16 rows: first into
/// its own rows of `tile` (nobody else may use those), then 16 bytes a lane to the first `count`
/// rows of `to`.
template <int kD, int kBlocks>
__device__ inline void store_rows(const Accumulator<kBlocks, kD / 8>& c,
                                  const float (&factor)[kBlocks][2], bf16* tile, bf16* to,
                                  std::int64_t stride, int count) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  __syncwarp();
#pragma unroll
  for (int m = 0; m < kBlocks; ++m) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int n = 0; n < kD / 8; ++n) {
        bf16* at = tile + swizzled<kD>(16 * m + 8 * h + lane / 4, n) + lane % 4 * 2;
        *reinterpret_cast<std::uint32_t*>(at) =
            pack_bf16(c[m][n][2 * h] * factor[m][h], c[m][n][2 * h + 1] * factor[m][h]);
      }
    }
  }
  __syncwarp();
  constexpr int kChunks = kD / kChunk;
  for (int i = lane; i < 16 * kBlocks * kChunks; i += kWarp) {
    const int row = i / kChunks;
    const int chunk = i % kChunks;
    if (row >= count) continue;
    *reinterpret_cast<uint4*>(to + row * stride + chunk * kChunk) =
        *reinterpret_cast<const uint4*>(tile + swizzled<kD>(row, chunk));
  }
}

}  // namespace proteus::cuda
