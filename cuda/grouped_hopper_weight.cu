// dW[g] = Σ_{r of g} a[r]ᵀ·b[r] in bf16 on Hopper. Blocks are shared out among the groups by their
// rows; those of a group take turns at its rows, 32 at a time, and multiply up to 512 columns of
// the wider matrix by 64 of the other, with both operands transposed in shared memory. What each
// has found is written in f32, and a second kernel adds it up in order. All blocks go through the
// tokens at about the same speed: a token's row, which several groups have, is read while it is in
// the cache.
#include <algorithm>
#include <utility>

#include "cuda/grouped_hopper.cuh"
#include "cuda/grouped_hopper.h"
#include "cuda/grouped_plan.h"

namespace proteus::cuda {
namespace {

constexpr int kConsumers = 2;
constexpr int kThreads = (1 + kConsumers) * kGroup;
constexpr int kDepth = 32;                 // rows at a time
constexpr std::int64_t kFewestRows = 128;  // of a block, which are worth its sums

/// kBlocks of 64 columns of the wider matrix for each consumer.
template <int kBlocks>
struct Shared {
  static constexpr int kWide = kConsumers * kBlocks * kPiece;
  static constexpr int kStages = kBlocks == 1 ? 16 : 6;

  alignas(1024) bf16 a[kStages][kWide / kPiece][kDepth * kPiece];
  alignas(1024) bf16 b[kStages][kDepth * kPiece];
  StageBarriers<kStages> stages;
};

/// What a block does: the rows [begin, end), kDepth at a time, `step` apart; the columns from p0
/// and q0 on.
struct Share {
  std::int64_t begin, end, step, p0, q0;
};

template <int kBlocks>
__device__ void produce(const GroupedWeight& w, const Share& share, Shared<kBlocks>& shared) {
  constexpr int kWide = Shared<kBlocks>::kWide;
  Ring<Shared<kBlocks>::kStages> ring;
  RowNumbers<kDepth> a, b, next_a, next_b;
  a.read(w.a_token, share.begin, share.end - share.begin);
  b.read(w.b_token, share.begin, share.end - share.begin);
  for (std::int64_t at = share.begin; at < share.end; at += share.step) {
    const std::int64_t next = at + share.step;
    next_a.read(w.a_token, next, share.end - next);
    next_b.read(w.b_token, next, share.end - next);
    shared.stages.begin(ring);
    for (int block = 0; block < kWide / kPiece && share.p0 + block * kPiece < w.P; ++block) {
      a.copy(shared.a[ring.stage][block], w.a, w.P, share.p0 + block * kPiece);
    }
    b.copy(shared.b[ring.stage], w.b, w.Q, share.q0);
    shared.stages.end(ring);
    a = next_a;
    b = next_b;
  }
  shared.stages.finish();
}

/// Blocks of 64 columns beyond P multiply whatever is in memory, and nobody looks at the result.
template <int kBlocks>
__device__ void consume(const GroupedWeight& w, const Share& share, float* sums,
                        Shared<kBlocks>& shared) {
  // Neighbouring blocks go to different consumers, so that both have work where P is small.
  const auto block_of = [](int i) { return kConsumers * i + consumer_of_thread(); };
  Ring<Shared<kBlocks>::kStages> ring;
  auto before = ring;
  float c[kBlocks][kPiece / 8][4];
  for (std::int64_t at = share.begin; at < share.end; at += share.step, ring.next()) {
    const bool first = at == share.begin;
    shared.stages.wait(ring);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
#pragma unroll
      for (int i = 0; i < kBlocks; ++i) {
        wgmma<true, true>(c[i], Operand(shared.a[ring.stage][block_of(i)] + k * kPiece, 16),
                          Operand(shared.b[ring.stage] + k * kPiece, 16), !first || k > 0);
      }
    }
    wgmma_commit();
    if (first) continue;
    wgmma_wait<1>();
    shared.stages.release(before);
    before.next();
  }
  wgmma_wait<0>();
#pragma unroll
  for (int i = 0; i < kBlocks; ++i) {
    fence_sums(c[i]);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::int64_t p =
          share.p0 + block_of(i) * kPiece + warp_id() % 4 * 16 + 8 * half + lane_id() / 4;
      if (p >= w.P) continue;
#pragma unroll
      for (int n = 0; n < kPiece / 8; ++n) {
        const std::int64_t q = share.q0 + 8 * n + lane_id() % 4 * 2;
        if (q >= w.Q) continue;
        *reinterpret_cast<float2*>(sums + p * w.Q + q) =
            float2{c[i][n][2 * half], c[i][n][2 * half + 1]};
      }
    }
  }
}

/// sums [blocks, P, Q].
template <int kBlocks>
__global__ void __launch_bounds__(kThreads, 1)
    weight_kernel(const GroupedWeight w, const RowShare* shares, const std::int32_t* count,
                  float* sums) {
  constexpr int kWide = Shared<kBlocks>::kWide;
  auto& shared = dynamic_shared<Shared<kBlocks>>();
  const std::int64_t columns = ceil_div(w.Q, std::int64_t{kPiece});
  const std::int64_t pieces = columns * ceil_div(w.P, std::int64_t{kWide});
  const std::int64_t block = blockIdx.x / pieces;
  const std::int64_t piece = blockIdx.x % pieces;
  if (block >= *count) return;
  const RowShare of = shares[block];
  const Share share{.begin = w.offsets[of.group * w.sequences] + of.block * kDepth,
                    .end = w.offsets[(of.group + 1) * w.sequences],
                    .step = of.blocks * kDepth,
                    .p0 = piece / columns * kWide,
                    .q0 = piece % columns * kPiece};
  if (threadIdx.x == 0) {
    shared.stages.make(kConsumers);
    fence_barriers();
  }
  __syncthreads();
  if (consumer_of_thread() < 0) {
    produce(w, share, shared);
  } else {
    consume(w, share, sums + block * w.P * w.Q, shared);
  }
}

/// dw [G, P, Q], or [G, Q, P] if turned. A thread has two neighbours along Q.
__global__ void add_blocks_kernel(const GroupedWeight w, const std::int32_t* first_block,
                                  const float* sums, bool turned) {
  const std::int64_t size = w.P * w.Q;
  for (std::int64_t i = first_unit(); i < w.groups * size / 2; i += unit_step()) {
    const std::int64_t g = quotient(2 * i, size);
    const std::int64_t at = 2 * i - g * size;
    float2 sum{0, 0};
    for (std::int64_t block = first_block[g]; block < first_block[g + 1]; ++block) {
      const float2 more = *reinterpret_cast<const float2*>(sums + block * size + at);
      sum.x += more.x;
      sum.y += more.y;
    }
    bf16* dw = static_cast<bf16*>(w.dw) + g * size;
    if (!turned) {
      *reinterpret_cast<std::uint32_t*>(dw + at) = pack_bf16(sum.x, sum.y);
      continue;
    }
    const std::int64_t p = quotient(at, w.Q);
    const std::int64_t q = at - p * w.Q;
    dw[q * w.P + p] = __float2bfloat16_rn(sum.x);
    dw[(q + 1) * w.P + p] = __float2bfloat16_rn(sum.y);
  }
}

template <int kBlocks>
void run(const GroupedWeight& w, bool turned) {
  const std::int64_t pieces =
      ceil_div(w.Q, std::int64_t{kPiece}) * ceil_div(w.P, std::int64_t{Shared<kBlocks>::kWide});
  const RowShares shares("grouped_weight", w.offsets, w.groups, w.sequences,
                         std::max<std::int64_t>(1, multiprocessors() / pieces), kFewestRows);
  const Storage space =
      scratch(static_cast<std::size_t>(shares.most() * w.P * w.Q) * sizeof(float));
  auto* sums = static_cast<float*>(space.data());
  launch_shared<Shared<kBlocks>>("grouped_weight: hopper", weight_kernel<kBlocks>,
                                 static_cast<unsigned>(shares.most() * pieces), kThreads, w,
                                 shares.shares(), shares.first_block() + w.groups, sums);
  launch("grouped_weight: hopper", add_blocks_kernel, blocks_for(w.groups * w.P * w.Q / 2), kBlock,
         0, w, shares.first_block(), static_cast<const float*>(sums), turned);
}

}  // namespace

bool hopper_weight_fits(const GroupedWeight& w) {
  return rows_of_words(w.dtype, w.P, w.Q, w.a, w.b, w.dw) && w.rows >= kFewestRows * w.groups &&
         capability() == 90;
}

// Few rows are worth the sums of wide blocks only if these are few.
void grouped_weight_hopper(const GroupedWeight& any) {
  constexpr std::int64_t kManyRows = 512;  // for every multiprocessor
  GroupedWeight w = any;
  const bool turned = w.P < w.Q;
  if (turned) {
    std::swap(w.a, w.b);
    std::swap(w.a_token, w.b_token);
    std::swap(w.P, w.Q);
  }
  w.rows >= kManyRows* multiprocessors() ? run<4>(w, turned) : run<1>(w, turned);
}

}  // namespace proteus::cuda
