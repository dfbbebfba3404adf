// What the kernels for Hopper share: rings of tiles between a producer warpgroup and its consumers.
//
// Rows come by cp.async, not by tensor maps: segments begin and end at any row, and what lies
// beyond is filled with zeros.
#pragma once

#include "cuda/attention_common.cuh"
#include "cuda/wgmma.cuh"

namespace proteus::cuda {

constexpr int kGroupRows = 64;  // of the sums of a consumer
/// Threads of the producer that copy rows: its first two warps. The third one finds out what comes
/// next while these still copy for the tile before.
constexpr int kCopiers = 64;
constexpr int kAhead = 2;       // copies of tiles on their way
constexpr int kWorkStages = 2;  // tiles of work that are known
/// Mean queries per segment below which most of a block would have nothing to do.
constexpr std::int64_t kWorthwhileSegment = 192;

/// Of the problem, in the types in which kernels use it: a conversion that a kernel makes of its
/// arguments once is made again for every tile by ptxas 13.0.
struct Constants {
  float scale;  // of scores, in units of log₂
  int anchors;
  explicit Constants(const AttentionProblem& p)
      : scale(static_cast<float>(p.scale) * kLog2E),
        anchors(static_cast<int>(std::min(p.anchors, std::int64_t{INT_MAX}))) {}
};

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

/// The same number in all lanes, in a way that the compiler knows it: addresses of operands made of
/// such numbers need no copies between the two kinds of registers.
__device__ inline int uniform(int x) { return __shfl_sync(kAllLanes, x, 0); }

/// Once per warp.
__device__ inline void release(Barrier* b) {
  __syncwarp();
  if (elected()) arrive_at(b);
}

/// The next tile of a list for this block. All lanes of a warp call it together.
__device__ inline int next_ticket(const TileList& tiles) {
  int ticket = 0;
  if (lane_id() == 0) ticket = atomicAdd(tiles.ticket(), 1);
  return uniform(ticket);
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

/// Copies rows of a segment into tiles of width kD: one tile of width 64 per half, one behind the
/// other. A thread keeps where its chunk of the first row is, and steps from there.
template <int kD>
class RowSource {
 public:
  __device__ RowSource(const HeadRows& rows, std::int64_t head, std::int64_t first)
      : from_(row_of<bf16>(rows, head, first + own_row()) + own_chunk() * kChunk),
        stride_(rows.row_stride) {}
  /// Starts copying the rows [row, row + count); the tile's other rows become zero.
  template <int kRows>
  __device__ void copy(bf16* tile, int row, int count) const {
    const auto always = [](int) { return true; };
    const auto inside = [&](int i) { return own_row() + i < count; };
    count >= kRows ? copy<kRows>(tile, row, always) : copy<kRows>(tile, row, inside);
  }

 private:
  template <int kRows, class F>
  __device__ void copy(bf16* tile, int row, const F& inside) const {
    static_assert(kRows % kPass == 0);
    const bf16* from = from_ + row * stride_;
    bf16* to = tile + swizzled<kSwizzledWidth>(own_row(), own_chunk());
#pragma unroll
    for (int i = 0; i < kRows; i += kPass) {
#pragma unroll
      for (int half = 0; half < kD / kSwizzledWidth; ++half) {
        copy_async_16(to + (half * kRows + i) * kSwizzledWidth, from + half * kSwizzledWidth,
                      inside(i));
      }
      from += kPass * stride_;
    }
  }

  static constexpr int kChunks = kSwizzledWidth / kChunk;
  static constexpr int kPass = kCopiers / kChunks;  // rows at a time
  static_assert(kPass % 8 == 0);                    // the swizzle repeats
  __device__ static int own_row() { return static_cast<int>(threadIdx.x) / kChunks; }
  __device__ static int own_chunk() { return static_cast<int>(threadIdx.x) % kChunks; }

  const bf16* from_;
  std::int64_t stride_;
};

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

/// A tile as an operand whose rows run along k.
__device__ inline Operand along_rows(const bf16* tile) { return {tile, 16}; }
/// A tile of kRows rows as a B with k across its rows.
template <int kRows>
__device__ inline Operand across_rows(const bf16* tile) {
  return {tile, kRows * kSwizzledWidth * static_cast<int>(sizeof(bf16))};
}

/// Starts s = the group's 64 rows of a times bᵀ, and closes the group. The tile a has kRowsA rows
/// in all, b has 8·kColumns; `a` begins at the group's first row.
template <int kD, int kRowsA, int kColumns>
__device__ inline void start_scores(Accumulator<1, kColumns>& s, const Operand& a,
                                    const Operand& b) {
  wgmma_fence();
#pragma unroll
  for (int d = 0; d < kD / 16; ++d) {
    const int half = d * 16 / kSwizzledWidth;
    const int column = d * 16 % kSwizzledWidth;
    wgmma(s[0], a + (half * kRowsA * kSwizzledWidth + column),
          b + (half * 8 * kColumns * kSwizzledWidth + column), d > 0);
  }
  wgmma_commit();
}

/// Starts sums += p·b, where b has 16·kBlocks rows, and closes the group.
template <int kD, int kBlocks>
__device__ inline void start_sums(Accumulator<1, kD / 8>& sums,
                                  const std::uint32_t (&p)[kBlocks][4], const Operand& b) {
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < kBlocks; ++k) wgmma(sums[0], p[k], b + 16 * k * kSwizzledWidth);
  wgmma_commit();
}

}  // namespace proteus::cuda
