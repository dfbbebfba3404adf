// What the kernels for Hopper share: rings of tiles between a producer warpgroup and its consumers.
//
// Rows come by cp.async, not by tensor maps: segments begin and end at any row, and what lies
// beyond is filled with zeros.
#pragma once

#include "cuda/attention_common.cuh"
#include "cuda/wgmma.cuh"

namespace proteus::cuda {

constexpr int kGroupRows = 64;  // of the sums of a consumer
constexpr int kAhead = 2;       // copies of tiles on their way
constexpr int kWorkStages = 2;  // tiles of work that are known
/// Mean queries per segment below which most of a block would have nothing to do.
constexpr std::int64_t kWorthwhileSegment = 192;

/// Counts uses of a ring of kStages: which stage comes next, and the parity of its phase.
template <int kStages>
struct Ring {
  int stage = 0;
  int parity = 0;
  __device__ void next() {
    stage = stage + 1 == kStages ? 0 : stage + 1;
    parity ^= stage == 0 ? 1 : 0;
  }
};

/// Once per warp.
__device__ inline void release(Barrier* b) {
  __syncwarp();
  if (lane_id() == 0) arrive_at(b);
}

/// The next tile of a list for this block. All lanes of a warp call it together.
__device__ inline int next_ticket(const TileList& tiles) {
  int ticket = 0;
  if (lane_id() == 0) ticket = atomicAdd(tiles.ticket(), 1);
  return __shfl_sync(kAllLanes, ticket, 0);
}

/// Copies on their way, each with the barrier to arrive at when it is there. A copy is reported
/// when kAhead later ones have begun, or when the producer has to wait for room: consumers may need
/// the copy to make it.
class Copies {
 public:
  /// Waits until consumers have given back what the next copy overwrites.
  __device__ inline void wait_for(Barrier* empty, int parity) {
    if (is_over(empty, parity)) return;
    finish();
    wait_at(empty, parity);
  }
  __device__ inline void start(Barrier* full) {
    commit_copies();
    if (full_[kAhead - 1]) {
      wait_copies<kAhead>();
      fence_for_wgmma();
      arrive_at(full_[kAhead - 1]);
    }
#pragma unroll
    for (int i = kAhead - 1; i > 0; --i) full_[i] = full_[i - 1];
    full_[0] = full;
  }
  __device__ inline void finish() {
    wait_copies<0>();
    fence_for_wgmma();
#pragma unroll
    for (int i = kAhead - 1; i >= 0; --i) {
      if (full_[i]) arrive_at(full_[i]);
      full_[i] = nullptr;
    }
  }

 private:
  Barrier* full_[kAhead] = {};  // newest first
};

/// Starts copying a tile of width kD: as one tile of width 64 per half, one behind the other.
template <int kRows, int kD>
__device__ inline void copy_halves(bf16* tile, const HeadRows& rows, std::int64_t head,
                                   std::int64_t row, int count) {
  const bf16* from = row_of<bf16>(rows, head, row);
#pragma unroll
  for (int half = 0; half < kD / kSwizzledWidth; ++half) {
    load_tile<kRows, kSwizzledWidth, kGroup>(tile + half * kRows * kSwizzledWidth,
                                             from + half * kSwizzledWidth, rows.row_stride, count);
  }
}

/// C blocks rounded to bf16: the A blocks of a product over 8·kColumns.
template <int kColumns>
__device__ inline void pack_blocks(std::uint32_t (&p)[kColumns / 2][4],
                                   const Accumulator<1, kColumns>& s) {
#pragma unroll
  for (int k = 0; k < kColumns / 2; ++k) {
    p[k][0] = pack_bf16(s[0][2 * k][0], s[0][2 * k][1]);
    p[k][1] = pack_bf16(s[0][2 * k][2], s[0][2 * k][3]);
    p[k][2] = pack_bf16(s[0][2 * k + 1][0], s[0][2 * k + 1][1]);
    p[k][3] = pack_bf16(s[0][2 * k + 1][2], s[0][2 * k + 1][3]);
  }
}

/// Starts s = the group's 64 rows of a times bᵀ, and closes the group. The tile a has kRowsA rows
/// in all, b has 8·kColumns; `a` points to the group's first row.
template <int kD, int kRowsA, int kColumns>
__device__ inline void start_scores(Accumulator<1, kColumns>& s, const bf16* a, const bf16* b) {
  wgmma_fence();
#pragma unroll
  for (int d = 0; d < kD / 16; ++d) {
    const int half = d * 16 / kSwizzledWidth;
    const int column = d * 16 % kSwizzledWidth;
    wgmma(s[0], descriptor(a + half * kRowsA * kSwizzledWidth + column, 16),
          descriptor(b + half * 8 * kColumns * kSwizzledWidth + column, 16), d > 0);
  }
  wgmma_commit();
}

/// Starts sums += p·b, where b has 16·kBlocks rows, and closes the group.
template <int kD, int kBlocks>
__device__ inline void start_sums(Accumulator<1, kD / 8>& sums,
                                  const std::uint32_t (&p)[kBlocks][4], const bf16* b) {
  constexpr int kHalfBytes = 16 * kBlocks * kSwizzledWidth * static_cast<int>(sizeof(bf16));
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < kBlocks; ++k) {
    wgmma(sums[0], p[k], descriptor(b + 16 * k * kSwizzledWidth, kHalfBytes));
  }
  wgmma_commit();
}

}  // namespace proteus::cuda
