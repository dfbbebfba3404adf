// The backward kernels for bf16 on Hopper (sm_90a): the two passes of attention_bwd.cu with wgmma,
// a producer warpgroup and two consumers of 64 rows each (hopper_pipeline.cuh). In the pass over
// keys K and V stay in shared memory while Q and dO pass by, in the pass over queries it is the
// other way round; both begin with the same two products, S and dP of the rows that stay. The pass
// over queries comes first: it has dO at hand, and needs only the output beside it to find δ, which
// the other pass reads.
#include "cuda/attention_anchors.cuh"
#include "cuda/attention_drop_bits.cuh"
#include "cuda/attention_hopper_rows.cuh"
#include "cuda/attention_rungs.h"

namespace proteus::cuda {
namespace {

/// A consumer's rows of a tile: those of its group in shared memory, and of its warp.
struct Mine {
  int group, first;
  __device__ Mine() {
    const int warp = uniform(warp_id()) - kGroup / kWarp;
    group = warp / 4;
    first = group * kGroupRows + warp % 4 * 16;
  }
};

/// The rows that stay, as left operands of S and dP, read from shared memory: ptxas 13.0 gives the
/// registers of a left operand that stays in them through the loop to the packed weights of the
/// sums, and from the second tile on multiplies those (seen in the disassembly).
template <class P>
struct FixedRows {
  Operand a, b;
  __device__ FixedRows(const Shared<P>& shared, int stage, const Mine& mine)
      : a(along_rows(shared.fixed_a[stage] + mine.group * kGroupRows * kSwizzledWidth)),
        b(along_rows(shared.fixed_b[stage] + mine.group * kGroupRows * kSwizzledWidth)) {}
};

/// A tile that passes by, as right operands: of S and dP, and of the sums.
template <class P>
struct MovingRows {
  Operand s, dp, sums_a, sums_b;
  __device__ MovingRows(const Shared<P>& shared, int stage)
      : s(along_rows(shared.moving_a[0]) + stage * kMoving * P::kD),
        dp(along_rows(shared.moving_b[0]) + stage * kMoving * P::kD),
        sums_a(across_rows<kMoving>(shared.moving_a[0]) + stage * kMoving * P::kD),
        sums_b(across_rows<kMoving>(shared.moving_b[0]) + stage * kMoving * P::kD) {}
};

/// Starts S and dP.
template <class P>
__device__ void start_products(Accumulator<1, kColumns>& s, Accumulator<1, kColumns>& dp,
                               const FixedRows<P>& fixed, const MovingRows<P>& moving) {
  start_scores<P::kD, P::kFixed>(s, fixed.a, moving.s);
  start_scores<P::kD, P::kFixed>(dp, fixed.b, moving.dp);
}

/// The stage whose tile the products in flight still read.
template <class P>
class InFlight {
 public:
  __device__ explicit InFlight(Shared<P>& shared) : shared_(shared) {}
  __device__ void set(int stage) { stage_ = stage; }
  /// Those products are done.
  __device__ void give_back() {
    if (stage_ >= 0) release(&shared_.empty[stage_]);
    stage_ = -1;
  }
  __device__ void finish() {
    wgmma_wait<0>();
    give_back();
  }
  /// Gives back a tile that the group does not see.
  __device__ void pass_by(int stage) {
    finish();
    release(&shared_.empty[stage]);
  }

 private:
  Shared<P>& shared_;
  int stage_ = -1;
};

template <class P>
__device__ void store_keys(const AttentionBwd& a, const Tile& t, const Mine& mine,
                           const Accumulator<1, P::kD / 8>& dk, const Accumulator<1, P::kD / 8>& dv,
                           Shared<P>& shared) {
  const std::int64_t row = t.s.k_row + t.first + mine.first;
  const int count = t.count - mine.first;
  bf16* staging = shared.out[0] + mine.first * P::kD;
  const float factor = static_cast<float>(a.problem.scale);
  if (a.dk.data) {
    store_rows<P::kD, 1>(dk, {{factor, factor}}, staging, row_of_out<bf16>(a.dk, t.s.head, row),
                         a.dk.row_stride, count);
  }
  if (a.dv.data) {
    store_rows<P::kD, 1>(dv, {{1, 1}}, staging, row_of_out<bf16>(a.dv, t.s.head, row),
                         a.dv.row_stride, count);
  }
}

/// Whether the sums of one tile are still being added while the next one's scores begin; at width
/// 128 the registers do not suffice, and the compiler would order all products.
template <class P>
constexpr bool kOverlap = P::kD == 64;

/// Weights rounded to bf16, without those that are dropped.
template <bool kDropout>
__device__ void pack_kept(std::uint32_t (&packed)[kColumns / 2][4],
                          const Accumulator<1, kColumns>& weights, const LaneBits<kColumns>& bits,
                          float keep) {
  if constexpr (kDropout) {
    Accumulator<1, kColumns> kept;
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) kept[0][n][e] = weights[0][n][e];
    }
    drop(kept, bits, keep);
    pack_blocks(packed, kept);
  } else {
    pack_blocks(packed, weights);
  }
}

template <class P, bool kBias, bool kDropout>
__device__ void consume_keys(const AttentionBwd& a, const Constants& all, const AnchorSums& far,
                             const DropBits& drops, const Work<P::kConsumers>& work,
                             Shared<P>& shared, int fixed_stage, Ring<P::kStages>& ring) {
  const Tile& t = work.tile;
  const Mine mine;
  const FixedRows<P> fixed(shared, fixed_stage, mine);
  InFlight<P> in_flight(shared);
  const int group_key = static_cast<int>(t.first) + mine.group * kGroupRows;
  const int key = static_cast<int>(t.first) + mine.first;
  const std::int64_t row = t.s.k_row + t.first + mine.first;
  RowBias<kBias> bias(a.problem.key_bias, row, t.count - mine.first);
  Accumulator<1, P::kD / 8> dk, dv;
  clear(dk);
  clear(dv);
  std::int64_t word = work.begin / 32;  // of the bits of moving queries
  for (int n = work.walk.end; n > 0; --n, ring.next(), word += kMoving / 32) {
    const int stage = uniform(ring.stage);
    const MovingRows<P> moving(shared, stage);
    wait_at(&shared.full[stage], ring.parity);
    const Sight sight = shared.sight[stage];
    if (sight.nothing(group_key, group_key + kGroupRows, all.anchors)) {
      in_flight.pass_by(stage);
      continue;
    }
    Accumulator<1, kColumns> s;
    Accumulator<1, kColumns> dp;
    std::uint32_t weights[kColumns / 2][4];
    std::uint32_t slope[kColumns / 2][4];
    LaneBits<kColumns> bits;
    const auto& queries = shared.moving_queries[stage];
    start_products(s, dp, fixed, moving);
    const ColumnValues lse(queries.lse, kLog2E);
    if constexpr (kDropout) {
      bits.read(drops.column(t.segment, key + lane_id() / 4) + word,
                drops.column(t.segment, key + lane_id() / 4 + 8) + word);
    }
    wgmma_wait<1>();
    in_flight.give_back();
    if (!sight.everything(group_key, group_key + kGroupRows, all.anchors)) {
      hide_queries(s, queries.lo, queries.hi, key, all.anchors);
    }
    weigh(s, all.scale, lse, bias);
    pack_kept<kDropout>(weights, s, bits, drops.keep);
    start_sums<P::kD>(dv, weights, moving.sums_b);
    const ColumnValues delta(queries.delta, 1);
    wgmma_wait<1>();
    if constexpr (kDropout) drop(dp, bits, drops.keep);
    slopes(dp, s, delta);
    bias.add(dp);
    pack_blocks(slope, dp);
    start_sums<P::kD>(dk, slope, moving.sums_a);
    in_flight.set(stage);
    if constexpr (!kOverlap<P>) in_flight.finish();
  }
  in_flight.finish();
  release(&shared.fixed_empty[fixed_stage]);
  far.add<P::kD, 1>(t, key, dk, dv, bias.sum);
  bias.store(a.dkey_bias, row, t.count - mine.first);
  store_keys(a, t, mine, dk, dv, shared);
}

/// Log-sum-exp and δ of a lane's queries, for this pass and, written down, for the other one.
template <class P>
__device__ RowStats find_stats(const Shared<P>& shared, int stage, const Tile& t, const Mine& mine,
                               const Stats& written) {
  RowStats found;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int i = mine.first + 8 * h + lane_id() / 4;
    float sum = 0;
#pragma unroll
    for (int c = lane_id() % 4; c < P::kD / kChunk; c += 4) {
      const int half = c * kChunk / kSwizzledWidth;
      const int in_half = swizzled<kSwizzledWidth>(i, c % (kSwizzledWidth / kChunk));
      sum = dot_chunk(shared.out[stage] + swizzled<P::kD>(i, c),
                      shared.fixed_b[stage] + half * P::kFixed * kSwizzledWidth + in_half, sum);
    }
    found.delta[h] = row_sum(sum);
    const float lse = finite_lse(shared.fixed_queries[stage].lse[i]);
    found.lse[h] = lse * kLog2E;
    if (lane_id() % 4 != 0 || i >= t.count) continue;
    written.lse[t.s.slot + t.first + i] = lse;
    written.delta[t.s.slot + t.first + i] = found.delta[h];
  }
  return found;
}

template <class P, bool kBias, bool kDropout>
__device__ void consume_queries(const AttentionBwd& a, const Stats& written, const Constants& all,
                                const DropBits& drops, const Work<P::kConsumers>& work,
                                Shared<P>& shared, int fixed_stage, Ring<P::kStages>& ring) {
  const Tile& t = work.tile;
  const Mine mine;
  const FixedRows<P> fixed(shared, fixed_stage, mine);
  InFlight<P> in_flight(shared);
  const auto& queries = shared.fixed_queries[fixed_stage];
  const RowStats stats = find_stats(shared, fixed_stage, t, mine, written);
  const RowRanges<1> ranges(queries.lo + mine.first, queries.hi + mine.first, 16);
  const Sight sight = work.group[mine.group];
  const KeyWalk walk = work.walk;
  const std::int64_t slot = t.s.slot + t.first;
  Accumulator<1, P::kD / 8> dq;
  clear(dq);
  for (int n = walk.first(); n < walk.end; n = walk.next(n), ring.next()) {
    const int stage = uniform(ring.stage);
    const MovingRows<P> moving(shared, stage);
    const int key = n * kMoving;
    wait_at(&shared.full[stage], ring.parity);
    if (sight.nothing(key, key + kMoving, all.anchors)) {
      in_flight.pass_by(stage);
      continue;
    }
    Accumulator<1, kColumns> s;
    Accumulator<1, kColumns> dp;
    std::uint32_t slope[kColumns / 2][4];
    LaneBits<kColumns> bits;
    start_products(s, dp, fixed, moving);
    if constexpr (kDropout) {
      // Beyond the tile's last query they may be anything.
      const int upper = mine.first + lane_id() / 4;
      bits.read(drops.row(slot + min(upper, t.count - 1)) + key / 32,
                drops.row(slot + min(upper + 8, t.count - 1)) + key / 32);
    }
    wgmma_wait<1>();
    in_flight.give_back();
    if (!sight.everything(key, key + kMoving, all.anchors)) hide(s, ranges, key, all.anchors);
    weigh<kBias>(s, all.scale, stats, shared.bias[stage]);
    wgmma_wait<0>();
    if constexpr (kDropout) drop(dp, bits, drops.keep);
    slopes(dp, s, stats);
    pack_blocks(slope, dp);
    start_sums<P::kD>(dq, slope, moving.sums_a);
    in_flight.set(stage);
  }
  in_flight.finish();
  const float factor = static_cast<float>(a.problem.scale);
  store_rows<P::kD, 1>(dq, {{factor, factor}}, shared.out[fixed_stage] + mine.first * P::kD,
                       row_of_out<bf16>(a.dq, t.s.head, t.s.q_row + t.first + mine.first),
                       a.dq.row_stride, t.count - mine.first);
  release(&shared.fixed_empty[fixed_stage]);
}

template <class P, bool kBias, bool kDropout>
__device__ void consume(const AttentionBwd& a, const Stats& stats, const Constants& all,
                        const AnchorSums& far, const DropBits& drops, Shared<P>& shared) {
  Ring<kWorkStages> work_ring;
  Ring<P::kStages> ring;
  Ring<P::kFixedStages> fixed;
  for (;; work_ring.next(), fixed.next()) {
    wait_at(&shared.work_full[work_ring.stage], work_ring.parity);
    const auto& work = shared.work[work_ring.stage];
    if (work.over) break;
    const int fixed_stage = uniform(fixed.stage);
    wait_at(&shared.fixed_full[fixed_stage], fixed.parity);
    if constexpr (P::kKeys) {
      consume_keys<P, kBias, kDropout>(a, all, far, drops, work, shared, fixed_stage, ring);
    } else {
      consume_queries<P, kBias, kDropout>(a, stats, all, drops, work, shared, fixed_stage, ring);
    }
    release(&shared.work_empty[work_ring.stage]);
  }
}

template <class P, bool kBias, bool kDropout>
__global__ void __launch_bounds__(P::kThreads, 1)
    backward(const AttentionBwd a, const TileList tiles, const Stats stats, const Constants all,
             const AnchorSums far, const DropBits drops) {
  auto& shared = dynamic_shared<Shared<P>>();
  if (threadIdx.x == 0) make_barriers(shared);
  __syncthreads();
  if (warp_id() < kGroup / kWarp) {
    fewer_registers<P::kProducerRegisters>();
    if (threadIdx.x < kCopiers) {
      copy_rows<P, kBias>(a, shared);
    } else if (warp_id() == kCopiers / kWarp) {
      look_ahead<P, kDropout>(a.problem, tiles, shared);
    } else if constexpr (P::kKeys) {
      copy_queries<P>(a.problem, stats, shared);
    }
  } else {
    more_registers<P::kConsumerRegisters>();
    consume<P, kBias, kDropout>(a, stats, all, far, drops, shared);
  }
}

template <class P, bool kBias, bool kDropout>
void run_pass(const AttentionBwd& a, const Stats& stats, const AnchorSums& far,
              const DropBits& drops) {
  const Tiles tiles(a.problem, P::kKeys ? TileOf::keys : TileOf::queries, P::kFixed);
  const unsigned blocks = std::min(tiles.grid(), static_cast<unsigned>(multiprocessors()));
  launch_shared<Shared<P>>("attention_bwd: hopper", backward<P, kBias, kDropout>, blocks,
                           P::kThreads, a, tiles.list(), stats, Constants(a.problem), far, drops);
}

template <int kD, bool kBias, bool kDropout>
void run(const AttentionBwd& a) {
  const QueryStats<float> prepared(a);
  const Stats stats{prepared.lse(), prepared.delta()};
  const DrawnBits drawn(a.problem, true);
  if (a.dq.data) {
    run_pass<Plan<kD, Pass::queries>, kBias, kDropout>(a, stats, {}, drawn.bits());
  } else {
    prepared.compute(a);
  }
  prepared.sinks(a);
  if (!a.dk.data && !a.dv.data && !a.dkey_bias) return;
  const AnchorGradient far(a, prepared);
  run_pass<Plan<kD, Pass::keys>, kBias, kDropout>(far.rest(a), stats, far.sums(), drawn.bits());
}

template <int kD>
void run_width(const AttentionBwd& a) {
  if (a.problem.dropout > 0) return run<kD, false, true>(a);
  a.problem.key_bias ? run<kD, true, false>(a) : run<kD, false, false>(a);
}

}  // namespace

bool hopper_bwd_fits(const AttentionBwd& a) {
  const AttentionProblem& p = a.problem;
  return mma_bwd_fits(a) && chunked(a.out, p.dtype) && p.D != 32 &&
         (p.dropout == 0 || (!p.key_bias && drop_bits_fit(p, true))) &&
         p.queries >= kWorthwhileSegment * p.segment_count && capability() == 90;
}

void attention_bwd_hopper(const AttentionBwd& a) {
  a.problem.D == 64 ? run_width<64>(a) : run_width<128>(a);
}

}  // namespace proteus::cuda
