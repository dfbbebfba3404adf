// What the products of packed rows on Hopper share. A block stays on a multiprocessor: a producer
// warpgroup brings pieces of 64 numbers by 64 or more rows to shared memory, and consumer
// warpgroups multiply them with wgmma. What lies outside of a matrix is filled with zeros.
#pragma once

#include "cuda/hopper_pipeline.cuh"

namespace proteus::cuda {

constexpr int kPiece = kSwizzledWidth;            // numbers in a row of a piece
constexpr int kPieceChunks = kPiece / kChunk;     // of 16 bytes
constexpr int kPassRows = kGroup / kPieceChunks;  // rows that the producer copies at a time

/// The chunk of every row, and the first row, that this thread of the producer copies.
__device__ inline int chunk_of_thread() { return static_cast<int>(threadIdx.x) % kPieceChunks; }
__device__ inline int row_of_thread() { return static_cast<int>(threadIdx.x) / kPieceChunks; }

/// Starts copying kRows rows, the first `width` numbers of each. row_at(pass) is this thread's row
/// row_of_thread() + pass·kPassRows, or null for zeros; `anywhere` can be pointed to.
template <int kRows, class RowAt>
__device__ inline void copy_piece(bf16* tile, std::int64_t width, const bf16* anywhere,
                                  RowAt&& row_at) {
  const int chunk = chunk_of_thread();
  const bool inside = chunk * kChunk < width;
  tile += swizzled<kPiece>(row_of_thread(), chunk);
#pragma unroll
  for (int pass = 0; pass < kRows / kPassRows; ++pass) {
    const bf16* row = row_at(pass);
    const bool there = inside && row;
    copy_async_16(tile + pass * kPassRows * kPiece, there ? row + chunk * kChunk : anywhere, there);
  }
}

/// The same of rows that follow each other, `stride` apart, `count` of them.
template <int kRows>
__device__ inline void copy_rows(bf16* tile, const bf16* from, std::int64_t stride,
                                 std::int64_t count, std::int64_t width) {
  copy_piece<kRows>(tile, width, from, [&](int pass) -> const bf16* {
    const int row = row_of_thread() + pass * kPassRows;
    return row < count ? from + row * stride : nullptr;
  });
}

/// Which rows of a matrix this thread of the producer copies of kRows rows, −1 for none. They are
/// read ahead of the copies, which would wait for them.
template <int kRows>
struct RowNumbers {
  std::int32_t of[kRows / kPassRows];

  /// Rows [begin, begin + count), of the matrix or of a list of its rows.
  __device__ void read(const std::int32_t* list, std::int64_t begin, std::int64_t count) {
#pragma unroll
    for (int pass = 0; pass < kRows / kPassRows; ++pass) {
      const int row = row_of_thread() + pass * kPassRows;
      of[pass] = row >= count ? -1
                 : list       ? list[begin + row]
                              : static_cast<std::int32_t>(begin) + row;
    }
  }
  /// Starts copying these rows of a matrix `width` wide, 64 columns from `column` on.
  __device__ void copy(bf16* tile, const void* matrix, std::int64_t width,
                       std::int64_t column) const {
    const bf16* from = static_cast<const bf16*>(matrix);
    copy_piece<kRows>(tile, width - column, from, [&](int pass) -> const bf16* {
      return of[pass] < 0 ? nullptr : from + of[pass] * width + column;
    });
  }
};

/// Starts copying the 64 × 64 numbers of a group's matrix from (k, n) on, as they lie in memory:
/// with kTrans k runs along the rows, without it n does.
template <bool kTrans, class Args>
__device__ inline void copy_weight(bf16* tile, const Args& a, std::int64_t g, std::int64_t k,
                                   std::int64_t n) {
  const std::int64_t width = kTrans ? a.K : a.N;
  const std::int64_t row = kTrans ? n : k;
  const std::int64_t column = kTrans ? k : n;
  copy_rows<kPiece>(tile, static_cast<const bf16*>(a.w) + g * a.K * a.N + row * width + column,
                    width, (kTrans ? a.N : a.K) - row, width - column);
}

/// Starts c = or += 64 rows of a piece, `rows`, times a piece of a matrix.
template <bool kTrans>
__device__ inline void start_product(float (&c)[8][4], const bf16* rows, const bf16* weight,
                                     bool add) {
#pragma unroll
  for (int k = 0; k < kPiece / 16; ++k) {
    const bf16* b = weight + 16 * k * (kTrans ? 1 : kPiece);
    wgmma<false, !kTrans>(c, Operand(rows + 16 * k, 16), Operand(b, 16), add || k > 0);
  }
}

/// Which consumer a thread belongs to; the producer is the first warpgroup.
__device__ inline int consumer_of_thread() { return warp_id() * kWarp / kGroup - 1; }

/// A ring of kStages stages that the producer fills for `consumers` warpgroups. Nobody waits for a
/// copy but those who use it: it arrives at the barrier of its stage by itself, and the consumers
/// make it visible to the matrix units. (A producer that does so waits for all of its copies.)
template <int kStages>
struct StageBarriers {
  Barrier full[kStages], empty[kStages];

  __device__ void make(int consumers) {
    for (int i = 0; i < kStages; ++i) {
      make_barrier(&full[i], kGroup + 1);
      make_barrier(&empty[i], consumers * kGroup / kWarp);
    }
  }
  /// By the producer: waits for room; then copies begin.
  __device__ void begin(const Ring<kStages>& ring) { wait_at(&empty[ring.stage], ring.parity ^ 1); }
  /// By the producer, whose first thread may have written to the stage, too.
  __device__ void end(Ring<kStages>& ring) {
    arrive_with_copies(&full[ring.stage]);
    if (threadIdx.x == 0) arrive_at(&full[ring.stage]);
    ring.next();
  }
  /// By the producer, when there is nothing more to copy.
  __device__ void finish() {
    commit_copies();
    wait_copies<0>();
  }
  /// By a consumer: waits for what is in the stage.
  __device__ void wait(const Ring<kStages>& ring) {
    wait_at(&full[ring.stage], ring.parity);
    fence_for_wgmma();
  }
  /// By a consumer: gives a stage back.
  __device__ void release(const Ring<kStages>& ring) { cuda::release(&empty[ring.stage]); }
};

/// Whether rows of a bf16 matrix are whole words of 16 bytes, as they are copied.
template <class... Pointers>
bool rows_of_words(DType dtype, std::int64_t a, std::int64_t b, Pointers... pointers) {
  return dtype == DType::bf16 && a % kChunk == 0 && b % kChunk == 0 &&
         can_pack<bfloat16, kChunk>(pointers...);
}

}  // namespace proteus::cuda
