// The backward kernels for bf16 on Hopper (sm_90a): the two passes of attention_bwd.cu with wgmma,
// a producer warpgroup and two consumers of 64 rows each (hopper_pipeline.cuh). In the pass over
// keys K and V stay in shared memory while Q and dO pass by, in the pass over queries it is the
// other way round; both begin with the same two products, S and dP of the rows that stay.
#include "cuda/attention_anchors.cuh"
#include "cuda/attention_drop_bits.cuh"
#include "cuda/attention_hopper_weights.cuh"
#include "cuda/attention_rungs.h"

namespace proteus::cuda {
namespace {

enum class Pass { keys, queries };  // whose rows stay

constexpr int kConsumers = 2;
constexpr int kThreads = (1 + kConsumers) * kGroup;
constexpr int kFixed = kConsumers * kGroupRows;  // rows that stay
template <int kD>
constexpr int kStages = kD == 64 ? 4 : 3;
// Together the 65,536 of a multiprocessor, less a little.
constexpr int kProducerRegisters = 24;
constexpr int kConsumerRegisters = 240;

/// What a block does next: a tile of rows that stay, and which rows pass by: tiles of the walk,
/// from `begin` to `end`.
struct Work {
  Tile tile;
  bool over;
  KeyWalk walk;
  std::int64_t begin, end;
  Sight group[kConsumers];  // of each consumer's queries, in the pass over queries
};

/// K and V stay and Q and dO move, or the other way round; statistics belong to moving queries.
template <int kD>
struct Shared {
  alignas(1024) bf16 fixed_a[kFixed * kD];
  alignas(1024) bf16 fixed_b[kFixed * kD];
  alignas(1024) bf16 moving_a[kStages<kD>][kMoving * kD];
  alignas(1024) bf16 moving_b[kStages<kD>][kMoving * kD];
  alignas(1024) bf16 out[kFixed * kD];
  float lse[kStages<kD>][kMoving];
  float delta[kStages<kD>][kMoving];
  float bias[kStages<kD>][kMoving];  // of moving keys
  int lo[kStages<kD>][kMoving];
  int hi[kStages<kD>][kMoving];
  Work work[kWorkStages];
  Barrier fixed_full, fixed_empty;
  Barrier full[kStages<kD>], empty[kStages<kD>];
  Barrier work_full[kWorkStages], work_empty[kWorkStages];
};

template <int kD>
__device__ void make_barriers(Shared<kD>& shared) {
  constexpr int kWarps = kConsumers * kGroup / kWarp;  // one arrival for each
  make_barrier(&shared.fixed_full, kGroup);
  make_barrier(&shared.fixed_empty, kWarps);
  for (int i = 0; i < kStages<kD>; ++i) {
    make_barrier(&shared.full[i], kGroup);
    make_barrier(&shared.empty[i], kWarps);
  }
  for (int i = 0; i < kWorkStages; ++i) {
    make_barrier(&shared.work_full[i], 1);
    make_barrier(&shared.work_empty[i], kThreads / kWarp);
  }
  fence_barriers();
}

/// Warp 0 of the producer: the next tile of the list, for everybody.
template <Pass kPass, bool kDropout>
__device__ void take_work(const AttentionProblem& p, const TileList& tiles, Work& work,
                          Barrier* full) {
  const int ticket = next_ticket(tiles);
  const bool over = ticket >= tiles.total();
  if (!over && kPass == Pass::keys) {
    const Tile t = tiles.find<TileOf::keys>(p, ticket, kFixed);
    const QueryRange queries(p, t.s, t.first, t.first + t.count);
    if (lane_id() == 0) {
      work.tile = t;
      // Bits of moving queries begin with a word.
      work.begin = kDropout ? queries.begin / 32 * 32 : queries.begin;
      work.end = queries.end;
      const std::int64_t count = max(std::int64_t{0}, queries.end - work.begin);
      work.walk = KeyWalk(static_cast<int>((count + kMoving - 1) / kMoving));
    }
  } else if (!over) {
    const Tile t = tiles.find<TileOf::queries>(p, ticket, kFixed);
    if (lane_id() == 0) {
      work.tile = t;
      work.begin = 0;
      work.end = t.s.k_count;
      work.walk = KeyWalk(tile_sight(p, t), anchors_of(p), kMoving);
    }
    if (lane_id() < kConsumers) {
      work.group[lane_id()] = WarpQueries(p, t, lane_id() * kGroupRows, kGroupRows).sight;
    }
  }
  if (lane_id() == 0) work.over = over;
  release(full);
}

/// Starts copying what is known of the queries [first, first + count) beside their rows.
template <int kD>
__device__ void copy_stats(const AttentionProblem& p, const AttentionSegment& s, const Stats& stats,
                           std::int64_t first, int count, Shared<kD>& shared, int stage) {
  static_assert(kGroup == 2 * kMoving);
  const int i = static_cast<int>(threadIdx.x) % kMoving;
  const bool inside = i < count;
  const std::int64_t at = first + (inside ? i : 0);
  if (threadIdx.x < kMoving) {
    copy_async_4(&shared.lse[stage][i], stats.lse + s.slot + at, inside);
    copy_async_4(&shared.delta[stage][i], stats.delta + s.slot + at, inside);
  } else {
    copy_async_4(&shared.lo[stage][i], p.lo + s.range + at, inside);
    copy_async_4(&shared.hi[stage][i], p.hi + s.range + at, inside);
  }
}

/// Starts copying the bias of the keys [first, first + count) beside their rows.
template <int kD>
__device__ void copy_bias(const AttentionProblem& p, const AttentionSegment& s, std::int64_t first,
                          int count, Shared<kD>& shared, int stage) {
  const int i = static_cast<int>(threadIdx.x);
  if (i >= kMoving) return;
  const auto* bias = static_cast<const float*>(p.key_bias) + s.k_row + first;
  copy_async_4(&shared.bias[stage][i], bias + (i < count ? i : 0), i < count);
}

template <int kD, Pass kPass, bool kBias>
__device__ void produce_tile(const AttentionBwd& a, const Stats& stats, const Work& work,
                             Shared<kD>& shared, Ring<kStages<kD>>& ring, Copies& copies) {
  constexpr bool kKeys = kPass == Pass::keys;
  const AttentionProblem& p = a.problem;
  const Tile& t = work.tile;
  const std::int64_t head = t.s.head;
  const std::int64_t fixed = (kKeys ? t.s.k_row : t.s.q_row) + t.first;
  copy_halves<kFixed, kD>(shared.fixed_a, kKeys ? p.k : p.q, head, fixed, t.count);
  copy_halves<kFixed, kD>(shared.fixed_b, kKeys ? p.v : a.dout, head, fixed, t.count);
  copies.start(&shared.fixed_full);
  const std::int64_t moving = kKeys ? t.s.q_row : t.s.k_row;
  for (int n = work.walk.first(); n < work.walk.end; n = work.walk.next(n), ring.next()) {
    const std::int64_t at = work.begin + static_cast<std::int64_t>(n) * kMoving;
    const int count = static_cast<int>(min(std::int64_t{kMoving}, work.end - at));
    const int stage = ring.stage;
    copies.wait_for(&shared.empty[stage], ring.parity ^ 1);
    copy_halves<kMoving, kD>(shared.moving_a[stage], kKeys ? p.q : p.k, head, moving + at, count);
    copy_halves<kMoving, kD>(shared.moving_b[stage], kKeys ? a.dout : p.v, head, moving + at,
                             count);
    if constexpr (kKeys) {
      copy_stats<kD>(p, t.s, stats, at, count, shared, stage);
    } else if constexpr (kBias) {
      copy_bias<kD>(p, t.s, at, count, shared, stage);
    }
    copies.start(&shared.full[stage]);
  }
  copies.finish();
}

template <int kD, Pass kPass, bool kBias, bool kDropout>
__device__ void produce(const AttentionBwd& a, const TileList& tiles, const Stats& stats,
                        Shared<kD>& shared) {
  Ring<kWorkStages> work_ring;
  Ring<kStages<kD>> ring;
  Ring<1> fixed_ring;
  Copies copies;
  while (true) {
    Work& work = shared.work[work_ring.stage];
    if (warp_id() == 0) {
      wait_at(&shared.work_empty[work_ring.stage], work_ring.parity ^ 1);
      take_work<kPass, kDropout>(a.problem, tiles, work, &shared.work_full[work_ring.stage]);
    }
    wait_at(&shared.work_full[work_ring.stage], work_ring.parity);
    if (work.over) break;
    wait_at(&shared.fixed_empty, fixed_ring.parity ^ 1);
    produce_tile<kD, kPass, kBias>(a, stats, work, shared, ring, copies);
    fixed_ring.next();
    release(&shared.work_empty[work_ring.stage]);
    work_ring.next();
  }
}

/// A consumer's rows of a tile: those of its group in shared memory, and of its warp.
struct Mine {
  int group, first;
  __device__ Mine() : group(warp_id() / 4 - 1), first(group * kGroupRows + warp_id() % 4 * 16) {}
};

/// The rows that stay, as left operands of S and dP, read from shared memory: ptxas 13.0 gives the
/// registers of a left operand that stays in them through the loop to the packed weights of the
/// sums, and from the second tile on multiplies those (seen in the disassembly).
template <int kD>
struct FixedRows {
  const bf16* a;
  const bf16* b;
  __device__ FixedRows(Shared<kD>& shared, const Mine& mine)
      : a(shared.fixed_a + mine.group * kGroupRows * kSwizzledWidth),
        b(shared.fixed_b + mine.group * kGroupRows * kSwizzledWidth) {}
  __device__ void start(Accumulator<1, kColumns>& s, Accumulator<1, kColumns>& dp,
                        const Shared<kD>& shared, int stage) const {
    start_scores<kD, kFixed>(s, a, shared.moving_a[stage]);
    start_scores<kD, kFixed>(dp, b, shared.moving_b[stage]);
  }
  __device__ void done(Shared<kD>& shared) const { release(&shared.fixed_empty); }
};

/// The stage whose tile the products in flight still read.
template <int kD>
class InFlight {
 public:
  __device__ explicit InFlight(Shared<kD>& shared) : shared_(shared) {}
  __device__ void set(int stage) { stage_ = stage; }
  /// Those products are done.
  __device__ void give_back() {
    if (stage_ >= 0) release(&shared_.empty[stage_]);
    stage_ = -1;
  }

 private:
  Shared<kD>& shared_;
  int stage_ = -1;
};

template <int kD>
__device__ void store_keys(const AttentionBwd& a, const Tile& t, const Mine& mine,
                           const Accumulator<1, kD / 8>& dk, const Accumulator<1, kD / 8>& dv,
                           Shared<kD>& shared) {
  const std::int64_t row = t.s.k_row + t.first + mine.first;
  const int count = t.count - mine.first;
  bf16* staging = shared.out + mine.first * kD;
  const float factor = static_cast<float>(a.problem.scale);
  if (a.dk.data) {
    store_rows<kD, 1>(dk, {{factor, factor}}, staging, row_of_out<bf16>(a.dk, t.s.head, row),
                      a.dk.row_stride, count);
  }
  if (a.dv.data) {
    store_rows<kD, 1>(dv, {{1, 1}}, staging, row_of_out<bf16>(a.dv, t.s.head, row), a.dv.row_stride,
                      count);
  }
}

/// Whether the sums of one tile are still being added while the next one's scores begin; at width
/// 128 the registers do not suffice, and the compiler would order all products.
template <int kD>
constexpr bool kOverlap = kD == 64;

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

template <int kD, bool kBias, bool kDropout>
__device__ void consume_keys(const AttentionBwd& a, const AnchorSums& far, const DropBits& drops,
                             const Work& work, Shared<kD>& shared, Ring<kStages<kD>>& ring) {
  const AttentionProblem& p = a.problem;
  const Tile& t = work.tile;
  const int anchors = anchors_of(p);
  const Mine mine;
  const FixedRows<kD> fixed(shared, mine);
  InFlight<kD> in_flight(shared);
  const int group_key = static_cast<int>(t.first) + mine.group * kGroupRows;
  const int key = static_cast<int>(t.first) + mine.first;
  const float scale = static_cast<float>(p.scale) * kLog2E;
  const std::int64_t row = t.s.k_row + t.first + mine.first;
  RowBias<kBias> bias(p.key_bias, row, t.count - mine.first);
  Accumulator<1, kD / 8> dk;
  Accumulator<1, kD / 8> dv;
  clear(dk);
  clear(dv);
  for (int n = work.walk.first(); n < work.walk.end; n = work.walk.next(n), ring.next()) {
    const int stage = ring.stage;
    const std::int64_t left = work.end - work.begin - static_cast<std::int64_t>(n) * kMoving;
    const int last = static_cast<int>(min(std::int64_t{kMoving}, left)) - 1;
    wait_at(&shared.full[stage], ring.parity);
    const Sight sight{shared.lo[stage][0], shared.hi[stage][0], shared.lo[stage][last],
                      shared.hi[stage][last]};
    if (sight.nothing(group_key, group_key + kGroupRows, anchors)) {
      wgmma_wait<0>();
      in_flight.give_back();
      release(&shared.empty[stage]);
      continue;
    }
    Accumulator<1, kColumns> s;
    Accumulator<1, kColumns> dp;
    std::uint32_t weights[kColumns / 2][4];
    std::uint32_t slope[kColumns / 2][4];
    const ColumnStats stats{shared.lse[stage], shared.delta[stage]};
    LaneBits<kColumns> bits;
    fixed.start(s, dp, shared, stage);
    if constexpr (kDropout) {
      const std::int64_t word = (work.begin + static_cast<std::int64_t>(n) * kMoving) / 32;
      bits.read(drops.column(t.segment, key + lane_id() / 4) + word,
                drops.column(t.segment, key + lane_id() / 4 + 8) + word);
    }
    wgmma_wait<1>();
    in_flight.give_back();
    const bool full =
        last == kMoving - 1 && sight.everything(group_key, group_key + kGroupRows, anchors);
    if (!full) hide_queries(s, shared.lo[stage], shared.hi[stage], key, anchors);
    weigh(s, scale, stats, bias);
    pack_kept<kDropout>(weights, s, bits, drops.keep);
    start_sums<kD>(dv, weights, shared.moving_b[stage]);
    wgmma_wait<1>();
    if constexpr (kDropout) drop(dp, bits, drops.keep);
    slopes(dp, s, stats);
    bias.add(dp);
    pack_blocks(slope, dp);
    start_sums<kD>(dk, slope, shared.moving_a[stage]);
    in_flight.set(stage);
    if constexpr (!kOverlap<kD>) {
      wgmma_wait<0>();
      in_flight.give_back();
    }
  }
  wgmma_wait<0>();
  in_flight.give_back();
  fixed.done(shared);
  far.add<kD, 1>(t, key, dk, dv, bias.sum);
  bias.store(a.dkey_bias, row, t.count - mine.first);
  store_keys<kD>(a, t, mine, dk, dv, shared);
}

template <int kD, bool kBias, bool kDropout>
__device__ void consume_queries(const AttentionBwd& a, const Stats& all_stats,
                                const DropBits& drops, const Work& work, Shared<kD>& shared,
                                Ring<kStages<kD>>& ring) {
  const AttentionProblem& p = a.problem;
  const Tile& t = work.tile;
  const int anchors = anchors_of(p);
  const Mine mine;
  const FixedRows<kD> fixed(shared, mine);
  InFlight<kD> in_flight(shared);
  const WarpQueries w(p, t, mine.first, 16);
  const RowStats stats(all_stats, w);
  const Sight sight = work.group[mine.group];
  const float scale = static_cast<float>(p.scale) * kLog2E;
  Accumulator<1, kD / 8> dq;
  clear(dq);
  for (int n = work.walk.first(); n < work.walk.end; n = work.walk.next(n), ring.next()) {
    const int stage = ring.stage;
    const int key = n * kMoving;
    wait_at(&shared.full[stage], ring.parity);
    if (sight.nothing(key, key + kMoving, anchors)) {
      wgmma_wait<0>();
      in_flight.give_back();
      release(&shared.empty[stage]);
      continue;
    }
    Accumulator<1, kColumns> s;
    Accumulator<1, kColumns> dp;
    std::uint32_t slope[kColumns / 2][4];
    LaneBits<kColumns> bits;
    fixed.start(s, dp, shared, stage);
    if constexpr (kDropout) {
      const std::int64_t last =
          w.slot + w.count - 1;  // of the tile, also for a warp without queries
      const std::int64_t upper = w.slot + lane_id() / 4;
      bits.read(drops.row(min(upper, last)) + key / 32, drops.row(min(upper + 8, last)) + key / 32);
    }
    wgmma_wait<1>();
    in_flight.give_back();
    if (!sight.everything(key, key + kMoving, anchors)) hide(s, w, key, anchors);
    weigh<kBias>(s, scale, stats, shared.bias[stage]);
    wgmma_wait<0>();
    if constexpr (kDropout) drop(dp, bits, drops.keep);
    slopes(dp, s, stats);
    pack_blocks(slope, dp);
    start_sums<kD>(dq, slope, shared.moving_a[stage]);
    in_flight.set(stage);
  }
  wgmma_wait<0>();
  in_flight.give_back();
  fixed.done(shared);
  const float factor = static_cast<float>(p.scale);
  store_rows<kD, 1>(dq, {{factor, factor}}, shared.out + mine.first * kD,
                    row_of_out<bf16>(a.dq, t.s.head, t.s.q_row + t.first + mine.first),
                    a.dq.row_stride, w.count);
}

template <int kD, Pass kPass, bool kBias, bool kDropout>
__device__ void consume(const AttentionBwd& a, const Stats& stats, const AnchorSums& far,
                        const DropBits& drops, Shared<kD>& shared) {
  Ring<kWorkStages> work_ring;
  Ring<kStages<kD>> ring;
  Ring<1> fixed_ring;
  while (true) {
    wait_at(&shared.work_full[work_ring.stage], work_ring.parity);
    const Work& work = shared.work[work_ring.stage];
    if (work.over) break;
    wait_at(&shared.fixed_full, fixed_ring.parity);
    if constexpr (kPass == Pass::keys) {
      consume_keys<kD, kBias, kDropout>(a, far, drops, work, shared, ring);
    } else {
      consume_queries<kD, kBias, kDropout>(a, stats, drops, work, shared, ring);
    }
    fixed_ring.next();
    release(&shared.work_empty[work_ring.stage]);
    work_ring.next();
  }
}

template <int kD, Pass kPass, bool kBias, bool kDropout>
__global__ void __launch_bounds__(kThreads, 1)
    backward(const AttentionBwd a, const TileList tiles, const Stats stats, const AnchorSums far,
             const DropBits drops) {
  auto& shared = dynamic_shared<Shared<kD>>();
  if (threadIdx.x == 0) make_barriers(shared);
  __syncthreads();
  if (warp_id() < kGroup / kWarp) {
    fewer_registers<kProducerRegisters>();
    produce<kD, kPass, kBias, kDropout>(a, tiles, stats, shared);
  } else {
    more_registers<kConsumerRegisters>();
    consume<kD, kPass, kBias, kDropout>(a, stats, far, drops, shared);
  }
}

template <int kD, Pass kPass, bool kBias, bool kDropout>
void run_pass(const AttentionBwd& a, const Stats& stats, const AnchorSums& far,
              const DropBits& drops) {
  const Tiles tiles(a.problem, kPass == Pass::keys ? TileOf::keys : TileOf::queries, kFixed);
  const unsigned blocks = std::min(tiles.grid(), static_cast<unsigned>(multiprocessors()));
  launch_shared<Shared<kD>>("attention_bwd: hopper", backward<kD, kPass, kBias, kDropout>, blocks,
                            kThreads, a, tiles.list(), stats, far, drops);
}

template <int kD, bool kBias, bool kDropout>
void run(const AttentionBwd& a) {
  const QueryStats<float> prepared(a);
  const Stats stats{prepared.lse(), prepared.delta()};
  const DrawnBits drawn(a.problem, true);
  if (a.dq.data) run_pass<kD, Pass::queries, kBias, kDropout>(a, stats, {}, drawn.bits());
  if (a.dk.data || a.dv.data || a.dkey_bias) {
    const AnchorGradient far(a, prepared);
    run_pass<kD, Pass::keys, kBias, kDropout>(far.rest(a), stats, far.sums(), drawn.bits());
  }
}

template <int kD>
void run_width(const AttentionBwd& a) {
  if (a.problem.dropout > 0) return run<kD, false, true>(a);
  a.problem.key_bias ? run<kD, true, false>(a) : run<kD, false, false>(a);
}

}  // namespace

bool hopper_bwd_fits(const AttentionBwd& a) {
  const AttentionProblem& p = a.problem;
  return mma_bwd_fits(a) && p.D != 32 &&
         (p.dropout == 0 || (!p.key_bias && drop_bits_fit(p, true))) &&
         p.queries >= kWorthwhileSegment * p.segment_count && capability() == 90;
}

void attention_bwd_hopper(const AttentionBwd& a) {
  a.problem.D == 64 ? run_width<64>(a) : run_width<128>(a);
}

}  // namespace proteus::cuda
