// The forward kernel for bf16 on Hopper (sm_90a): a block is one producer warpgroup, which takes
// tiles of queries from a counter and brings rows to shared memory, and two or three consumer
// warpgroups with 64 queries each, which multiply with wgmma. They meet at barriers alone, so that
// copies, matrix units and exponentials of different warpgroups run at the same time; and inside a
// consumer the next tile's scores are computed while this tile's values are added.
//
// Rows come by cp.async, not by tensor maps: segments begin and end at any row, and what lies
// beyond is filled with zeros.
#include "cuda/attention_drop_bits.cuh"
#include "cuda/attention_rungs.h"
#include "cuda/attention_softmax.cuh"
#include "cuda/hopper_pipeline.cuh"

namespace proteus::cuda {
namespace {

constexpr int kKeys = 128;  // per tile

/// By width: consumers, tiles of keys in shared memory, and registers per thread, which must add up
/// to the 65,536 of a multiprocessor.
template <int kD>
struct Plan {
  static constexpr int kConsumers = kD == 64 ? 3 : 2;
  static constexpr int kStages = kD == 64 ? 3 : 2;
  static constexpr int kQueryStages = 2;
  static constexpr int kProducerRegisters = kD == 64 ? 32 : 56;
  static constexpr int kConsumerRegisters = kD == 64 ? 160 : 224;
  static constexpr int kThreads = (1 + kConsumers) * kGroup;
  static constexpr int kRows = kConsumers * kGroupRows;
};

/// What a block does next.
template <int kConsumers>
struct Work {
  Tile tile;
  bool over;
  KeyWalk walk;             // of all queries of the tile
  Sight group[kConsumers];  // of each consumer's
};

template <int kD>
struct Shared {
  using P = Plan<kD>;
  alignas(1024) bf16 q[P::kQueryStages][P::kRows * kD];
  alignas(1024) bf16 k[P::kStages][kKeys * kD];
  alignas(1024) bf16 v[P::kStages][kKeys * kD];
  alignas(1024) bf16 out[P::kRows * kD];
  Work<P::kConsumers> work[kWorkStages];
  Barrier q_full[P::kQueryStages], q_empty[P::kQueryStages];
  Barrier k_full[P::kStages], k_empty[P::kStages];
  Barrier v_full[P::kStages], v_empty[P::kStages];
  Barrier work_full[kWorkStages], work_empty[kWorkStages];
};

template <int kD>
__device__ void make_barriers(Shared<kD>& shared) {
  using P = Plan<kD>;
  constexpr int kWarps = P::kConsumers * kGroup / kWarp;  // one arrival for each
  for (int i = 0; i < P::kQueryStages; ++i) {
    make_barrier(&shared.q_full[i], kCopiers);
    make_barrier(&shared.q_empty[i], kWarps);
  }
  for (int i = 0; i < P::kStages; ++i) {
    make_barrier(&shared.k_full[i], kCopiers);
    make_barrier(&shared.v_full[i], kCopiers);
    make_barrier(&shared.k_empty[i], kWarps);
    make_barrier(&shared.v_empty[i], kWarps);
  }
  for (int i = 0; i < kWorkStages; ++i) {
    make_barrier(&shared.work_full[i], 1);
    make_barrier(&shared.work_empty[i], kWarps + kCopiers / kWarp);
  }
  fence_barriers();
}

/// The next tile of the list, by a warp. False: there is none.
template <int kD>
__device__ bool take_work(const AttentionProblem& p, const TileList& tiles,
                          Work<Plan<kD>::kConsumers>& work) {
  using P = Plan<kD>;
  const int ticket = next_ticket(tiles);
  const bool over = ticket >= tiles.total();
  if (!over) {
    const Tile t = tiles.find<TileOf::queries>(p, ticket, P::kRows);
    if (lane_id() == 0) {
      work.tile = t;
      work.walk = KeyWalk(tile_sight(p, t), anchors_of(p), kKeys);
    }
    if (lane_id() < P::kConsumers) {
      work.group[lane_id()] = WarpQueries(p, t, lane_id() * kGroupRows, kGroupRows).sight;
    }
  }
  if (lane_id() == 0) work.over = over;
  return !over;
}

/// A warp of the producer: finds tiles for everybody, ahead of the one that is being copied.
template <int kD>
__device__ void look_ahead(const AttentionProblem& p, const TileList& tiles, Shared<kD>& shared) {
  Ring<kWorkStages> ring;
  bool more = true;
  for (; more; ring.next()) {
    wait_at(&shared.work_empty[ring.stage], ring.parity ^ 1);
    more = take_work<kD>(p, tiles, shared.work[ring.stage]);
    release(&shared.work_full[ring.stage]);
  }
}

/// The producer's warps that copy. They run ahead of the consumers into the next tile.
template <int kD>
__device__ void copy_rows(const AttentionFwd& a, Shared<kD>& shared) {
  using P = Plan<kD>;
  const AttentionProblem& p = a.problem;
  Ring<kWorkStages> work_ring;
  Ring<P::kStages> ring;
  Ring<P::kQueryStages> q_ring;
  Copies copies;
  for (;; work_ring.next(), q_ring.next()) {
    copies.wait_for(&shared.work_full[work_ring.stage], work_ring.parity);
    const auto& work = shared.work[work_ring.stage];
    if (work.over) break;
    const Tile& t = work.tile;
    copies.wait_for(&shared.q_empty[q_ring.stage], q_ring.parity ^ 1);
    RowSource<kD>(p.q, t.s.head, t.s.q_row + t.first)
        .template copy<P::kRows>(shared.q[q_ring.stage], 0, t.count);
    copies.start(&shared.q_full[q_ring.stage]);
    const RowSource<kD> keys(p.k, t.s.head, t.s.k_row);
    const RowSource<kD> values(p.v, t.s.head, t.s.k_row);
    const KeyWalk walk = work.walk;
    const int total = static_cast<int>(t.s.k_count);
    for (int tile = walk.first(); tile < walk.end; tile = walk.next(tile), ring.next()) {
      const int key = tile * kKeys;
      copies.wait_for(&shared.k_empty[ring.stage], ring.parity ^ 1);
      keys.template copy<kKeys>(shared.k[ring.stage], key, total - key);
      copies.start(&shared.k_full[ring.stage]);
      copies.wait_for(&shared.v_empty[ring.stage], ring.parity ^ 1);
      values.template copy<kKeys>(shared.v[ring.stage], key, total - key);
      copies.start(&shared.v_full[ring.stage]);
    }
    release(&shared.work_empty[work_ring.stage]);
  }
  copies.finish();
}

/// What a consumer has of one tile of queries: 64 for the group, 16 for this warp.
template <int kD, bool kDropout>
struct Queries {
  int q;        // where the group's begin in shared.q, in elements
  Sight sight;  // of the group
  WarpQueries w;
  int anchors;
  float scale;
  DropBits drop_bits;
  LaneBits<kKeys / 8> bits;  // of a tile of keys
  Softmax<1> softmax;
  RowFactors<1> shrink;
  Accumulator<1, kD / 8> o;
  Accumulator<1, kKeys / 8> s;

  /// Starts reading which weights of a tile of keys are kept.
  __device__ void read_bits(int tile) {
    if constexpr (kDropout) {
      const std::int64_t last =
          w.slot + w.count - 1;  // of the tile, also for a warp without queries
      const std::int64_t upper = w.slot + lane_id() / 4;
      bits.read(drop_bits.row(min(upper, last)) + tile * (kKeys / 32),
                drop_bits.row(min(upper + 8, last)) + tile * (kKeys / 32));
    }
  }
  /// Scores of a tile of keys → weights.
  __device__ void weigh(int tile) {
    const int key = tile * kKeys;
    if (!sight.everything(key, key + kKeys, anchors)) hide(s, w, key, anchors);
    online_softmax(s, scale, softmax, shrink);
    if constexpr (kDropout) drop(s, bits, drop_bits.keep);
  }
};

/// Gives back a tile of keys that other groups see and this one does not.
template <int kD>
__device__ void pass_by(Shared<kD>& shared, Ring<Plan<kD>::kStages>& ring) {
  wait_at(&shared.k_full[ring.stage], ring.parity);
  release(&shared.k_empty[ring.stage]);
  wait_at(&shared.v_full[ring.stage], ring.parity);
  release(&shared.v_empty[ring.stage]);
  ring.next();
}

/// Goes from `tile` through the tiles of keys that the group sees and returns the one after them. K
/// and V have the same ring; V's stage is given back one step later.
template <int kD, bool kDropout>
__device__ int attend(Queries<kD, kDropout>& x, const KeyWalk& walk, int tile, Barrier& q_empty,
                      Shared<kD>& shared, Ring<Plan<kD>::kStages>& ring) {
  constexpr int kRows = Plan<kD>::kRows;
  const auto q_rows = [&] { return along_rows(shared.q[0]) + uniform(x.q); };
  const auto k_at = [&](int stage) { return along_rows(shared.k[0]) + stage * kKeys * kD; };
  const auto v_at = [&](int stage) { return across_rows<kKeys>(shared.v[0]) + stage * kKeys * kD; };
  std::uint32_t weights[kKeys / 16][4];
  ring.stage = uniform(ring.stage);
  wait_at(&shared.k_full[ring.stage], ring.parity);
  start_scores<kD, kRows>(x.s, q_rows(), k_at(ring.stage));
  x.read_bits(tile);
  wgmma_wait<0>();
  release(&shared.k_empty[ring.stage]);
  x.weigh(tile);
  pack_blocks(weights, x.s);
  auto before = ring;
  ring.next();
  tile = walk.next(tile);
  for (; tile < walk.end && tile * kKeys < x.sight.hi_last; tile = walk.next(tile)) {
    ring.stage = uniform(ring.stage);
    wait_at(&shared.k_full[ring.stage], ring.parity);
    start_scores<kD, kRows>(x.s, q_rows(), k_at(ring.stage));
    wait_at(&shared.v_full[before.stage], before.parity);
    start_sums<kD>(x.o, weights, v_at(uniform(before.stage)));
    x.read_bits(tile);
    wgmma_wait<1>();
    release(&shared.k_empty[ring.stage]);
    x.weigh(tile);
    wgmma_wait<0>();
    release(&shared.v_empty[before.stage]);
    scale_rows(x.o, x.shrink);
    pack_blocks(weights, x.s);
    before = ring;
    ring.next();
  }
  release(&q_empty);
  wait_at(&shared.v_full[before.stage], before.parity);
  start_sums<kD>(x.o, weights, v_at(uniform(before.stage)));
  wgmma_wait<0>();
  release(&shared.v_empty[before.stage]);
  return tile;
}

template <int kD, bool kDropout>
__device__ void consume_tile(const AttentionFwd& a, const Constants& all, const DropBits& bits,
                             const Work<Plan<kD>::kConsumers>& work, Shared<kD>& shared,
                             Ring<Plan<kD>::kStages>& ring, const Ring<Plan<kD>::kQueryStages>& q) {
  const AttentionProblem& p = a.problem;
  const Tile& t = work.tile;
  const int warp = uniform(warp_id()) - kGroup / kWarp;
  const int group = warp / 4;
  const int first = group * kGroupRows + warp % 4 * 16;  // of this warp
  const KeyWalk walk = work.walk;
  Queries<kD, kDropout> x{.q = q.stage * Plan<kD>::kRows * kD + group * kGroupRows * kSwizzledWidth,
                          .sight = work.group[group],
                          .w = WarpQueries(p, t, first, 16),
                          .anchors = all.anchors,
                          .scale = all.scale,
                          .drop_bits = bits};
  clear(x.o);
  int tile = walk.first();
  const auto seen = [&] { return !x.sight.nothing(tile * kKeys, (tile + 1) * kKeys, x.anchors); };
  Barrier& q_empty = shared.q_empty[q.stage];
  wait_at(&shared.q_full[q.stage], q.parity);
  for (; tile < walk.end && !seen(); tile = walk.next(tile)) pass_by(shared, ring);
  if (tile < walk.end) {
    tile = attend(x, walk, tile, q_empty, shared, ring);
  } else {
    release(&q_empty);
  }
  for (; tile < walk.end; tile = walk.next(tile)) pass_by(shared, ring);
  finish<kD>(a, t, x.w, first, x.softmax, x.o, shared.out + first * kD);
}

template <int kD, bool kDropout>
__device__ void consume(const AttentionFwd& a, const Constants& all, const DropBits& bits,
                        Shared<kD>& shared) {
  using P = Plan<kD>;
  Ring<kWorkStages> work_ring;
  Ring<P::kStages> ring;
  Ring<P::kQueryStages> q;
  for (;; work_ring.next(), q.next()) {
    wait_at(&shared.work_full[work_ring.stage], work_ring.parity);
    const auto& work = shared.work[work_ring.stage];
    if (work.over) break;
    consume_tile<kD, kDropout>(a, all, bits, work, shared, ring, q);
    release(&shared.work_empty[work_ring.stage]);
  }
}

template <int kD, bool kDropout>
__global__ void __launch_bounds__(Plan<kD>::kThreads, 1)
    forward(const AttentionFwd a, const TileList tiles, const Constants all, const DropBits bits) {
  using P = Plan<kD>;
  auto& shared = dynamic_shared<Shared<kD>>();
  if (threadIdx.x == 0) make_barriers(shared);
  __syncthreads();
  if (warp_id() < kGroup / kWarp) {
    fewer_registers<P::kProducerRegisters>();
    if (threadIdx.x < kCopiers) {
      copy_rows(a, shared);
    } else if (warp_id() == kCopiers / kWarp) {
      look_ahead(a.problem, tiles, shared);
    }
  } else {
    more_registers<P::kConsumerRegisters>();
    consume<kD, kDropout>(a, all, bits, shared);
  }
}

template <int kD>
void run(const AttentionFwd& a) {
  const Tiles tiles(a.problem, TileOf::queries, Plan<kD>::kRows);
  const unsigned blocks = std::min(tiles.grid(), static_cast<unsigned>(multiprocessors()));
  const DrawnBits drawn(a.problem, false);
  launch_shared<Shared<kD>>(
      "attention_fwd: hopper", a.problem.dropout > 0 ? forward<kD, true> : forward<kD, false>,
      blocks, Plan<kD>::kThreads, a, tiles.list(), Constants(a.problem), drawn.bits());
}

}  // namespace

bool hopper_fwd_fits(const AttentionFwd& a) {
  const AttentionProblem& p = a.problem;
  return mma_fwd_fits(a) && p.D != 32 && !p.key_bias &&
         (p.dropout == 0 || drop_bits_fit(p, false)) &&
         p.queries >= kWorthwhileSegment * p.segment_count && capability() == 90;
}

void attention_fwd_hopper(const AttentionFwd& a) { a.problem.D == 64 ? run<64>(a) : run<128>(a); }

}  // namespace proteus::cuda
