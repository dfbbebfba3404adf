// What a block of the backward on Hopper holds in shared memory, and its producer: which tile comes
// next, and how rows get there.
#pragma once

#include "cuda/attention_hopper_weights.cuh"

namespace proteus::cuda {

enum class Pass { keys, queries };  // whose rows stay

/// Consumers, stages of rows, and registers per thread, which must add up to the 65,536 of a
/// multiprocessor. The next tile's rows that stay come while this one's are in use, if there is
/// room for both. At width 128 the sums of keys leave the producer less than it wants.
template <int kWidth, Pass kPass>
struct Plan {
  static constexpr int kD = kWidth;
  static constexpr bool kKeys = kPass == Pass::keys;  // stay
  static constexpr int kConsumers = 2;
  static constexpr int kThreads = (1 + kConsumers) * kGroup;
  static constexpr int kFixed = kConsumers * kGroupRows;  // rows that stay
  static constexpr int kStages = kD == 64 ? 4 : 3;
  static constexpr int kFixedStages = kD == 64 ? 2 : 1;
  static constexpr int kProducerRegisters = kD == 128 && kKeys ? 24 : 56;
  static constexpr int kConsumerRegisters = kD == 128 && kKeys ? 240 : 224;
};

/// What a block does next: a tile of rows that stay, and which rows pass by: tiles of the walk,
/// from `begin` to `end`.
template <int kConsumers>
struct Work {
  Tile tile;
  bool over;
  KeyWalk walk;
  std::int64_t begin, end;
  Sight group[kConsumers];  // of each consumer's queries, in the pass over queries
};

/// K and V stay and Q and dO move, or the other way round; statistics belong to the queries.
template <class P>
struct Shared {
  static constexpr int kD = P::kD;
  alignas(1024) bf16 fixed_a[P::kFixedStages][P::kFixed * kD];
  alignas(1024) bf16 fixed_b[P::kFixedStages][P::kFixed * kD];
  alignas(1024) bf16 moving_a[P::kStages][kMoving * kD];
  alignas(1024) bf16 moving_b[P::kStages][kMoving * kD];
  /// Gradients on their way out; in the pass over queries first the output, in the same rows.
  alignas(1024) bf16 out[P::kKeys ? 1 : P::kFixedStages][P::kFixed * kD];
  QueryRows<P::kFixed> fixed_queries[P::kFixedStages];
  QueryRows<kMoving> moving_queries[P::kStages];
  Sight sight[P::kStages];          // of all moving queries
  float bias[P::kStages][kMoving];  // of moving keys
  Work<P::kConsumers> work[kWorkStages];
  Barrier fixed_full[P::kFixedStages], fixed_empty[P::kFixedStages];
  Barrier full[P::kStages], empty[P::kStages];
  Barrier work_full[kWorkStages], work_empty[kWorkStages];
};

template <class P>
__device__ void make_barriers(Shared<P>& shared) {
  constexpr int kWarps = P::kConsumers * kGroup / kWarp;  // one arrival for each
  constexpr int kBeside = P::kKeys ? kWarp : 0;           // threads of copy_queries()
  for (int i = 0; i < P::kFixedStages; ++i) {
    make_barrier(&shared.fixed_full[i], kCopiers);
    make_barrier(&shared.fixed_empty[i], kWarps);
  }
  for (int i = 0; i < P::kStages; ++i) {
    make_barrier(&shared.full[i], kCopiers + kBeside);
    make_barrier(&shared.empty[i], kWarps);
  }
  for (int i = 0; i < kWorkStages; ++i) {
    make_barrier(&shared.work_full[i], 1);
    make_barrier(&shared.work_empty[i], kWarps + (kCopiers + kBeside) / kWarp);
  }
  fence_barriers();
}

/// The next tile of the list, by a warp. False: there is none.
template <class P, bool kDropout>
__device__ bool take_work(const AttentionProblem& p, const TileList& tiles,
                          Work<P::kConsumers>& work) {
  const int ticket = next_ticket(tiles);
  const bool over = ticket >= tiles.total();
  if (!over && P::kKeys) {
    const Tile t = tiles.find<TileOf::keys>(p, ticket, P::kFixed);
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
    const Tile t = tiles.find<TileOf::queries>(p, ticket, P::kFixed);
    if (lane_id() == 0) {
      work.tile = t;
      work.begin = 0;
      work.end = t.s.k_count;
      work.walk = KeyWalk(tile_sight(p, t), anchors_of(p), kMoving);
    }
    if (lane_id() < P::kConsumers) {
      work.group[lane_id()] = WarpQueries(p, t, lane_id() * kGroupRows, kGroupRows).sight;
    }
  }
  if (lane_id() == 0) work.over = over;
  return !over;
}

/// A warp of the producer: finds tiles for everybody, ahead of the one that is being copied.
template <class P, bool kDropout>
__device__ void look_ahead(const AttentionProblem& p, const TileList& tiles, Shared<P>& shared) {
  Ring<kWorkStages> ring;
  bool more = true;
  for (; more; ring.next()) {
    wait_at(&shared.work_empty[ring.stage], ring.parity ^ 1);
    more = take_work<P, kDropout>(p, tiles, shared.work[ring.stage]);
    release(&shared.work_full[ring.stage]);
  }
}

/// Starts copying what is known of the moving queries from `first` on beside their rows, by a warp;
/// zeros beyond `count`.
template <class P>
__device__ void copy_stats(const AttentionProblem& p, const AttentionSegment& s, const Stats& stats,
                           std::int64_t first, int count, Shared<P>& shared, int stage) {
  auto& rows = shared.moving_queries[stage];
  const float* lse = stats.lse + s.slot + first;
  const float* delta = stats.delta + s.slot + first;
  const std::int32_t* lo = p.lo + s.range + first;
  const std::int32_t* hi = p.hi + s.range + first;
#pragma unroll
  for (int half = 0; half < kMoving; half += kWarp) {
    const int i = half + lane_id();
    const bool inside = i < count;
    const int from = inside ? i : 0;
    copy_async_4(&rows.lse[i], lse + from, inside);
    copy_async_4(&rows.delta[i], delta + from, inside);
    copy_async_4(&rows.lo[i], lo + from, inside);
    copy_async_4(&rows.hi[i], hi + from, inside);
  }
  const int field = lane_id();  // of a Sight
  if (field >= 4) return;
  // Of queries that do not fill the tile the first one shall see nothing: then no key is seen by
  // everybody.
  copy_async_4(reinterpret_cast<int*>(&shared.sight[stage]) + field,
               (field % 2 == 0 ? lo : hi) + (field < 2 ? 0 : count - 1),
               field != 1 || count == kMoving);
}

/// A warp of the producer, in the pass over keys: copies what copy_rows() leaves out.
template <class P>
__device__ void copy_queries(const AttentionProblem& p, const Stats& stats, Shared<P>& shared) {
  Ring<kWorkStages> work_ring;
  Ring<P::kStages> ring;
  Copies copies;
  for (;; work_ring.next()) {
    copies.wait_for(&shared.work_full[work_ring.stage], work_ring.parity);
    const auto& work = shared.work[work_ring.stage];
    if (work.over) break;
    const AttentionSegment s = work.tile.s;
    const std::int64_t begin = work.begin;
    const int total = static_cast<int>(work.end - begin);
    for (int row = 0; row < total; row += kMoving, ring.next()) {
      copies.wait_for(&shared.empty[ring.stage], ring.parity ^ 1);
      copy_stats(p, s, stats, begin + row, min(kMoving, total - row), shared, ring.stage);
      copies.start(&shared.full[ring.stage]);
    }
    release(&shared.work_empty[work_ring.stage]);
  }
  copies.finish();
}

/// Starts copying the output beside dO, and what is known of its queries.
template <class P>
__device__ void copy_output(const AttentionBwd& a, const Tile& t, Shared<P>& shared, int stage) {
  const AttentionProblem& p = a.problem;
  load_tile<P::kFixed, P::kD, kCopiers>(shared.out[stage],
                                        row_of<bf16>(a.out, t.s.head, t.s.q_row + t.first),
                                        a.out.row_stride, t.count);
  auto& rows = shared.fixed_queries[stage];
  const auto* lse = static_cast<const float*>(a.lse) + t.s.slot + t.first;
  for (int i = static_cast<int>(threadIdx.x); i < P::kFixed; i += kCopiers) {
    const bool inside = i < t.count;
    const int from = inside ? i : 0;
    copy_async_4(&rows.lse[i], lse + from, inside);
    copy_async_4(&rows.lo[i], p.lo + t.s.range + t.first + from, inside);
    copy_async_4(&rows.hi[i], p.hi + t.s.range + t.first + from, inside);
  }
}

template <class P, bool kBias>
__device__ void copy_moving(const AttentionBwd& a, const Work<P::kConsumers>& work,
                            Shared<P>& shared, Ring<P::kStages>& ring, Copies& copies) {
  const AttentionProblem& p = a.problem;
  const AttentionSegment& s = work.tile.s;
  const std::int64_t first = (P::kKeys ? s.q_row : s.k_row) + work.begin;
  const RowSource<P::kD> from_a(P::kKeys ? p.q : p.k, s.head, first);
  const RowSource<P::kD> from_b(P::kKeys ? a.dout : p.v, s.head, first);
  const KeyWalk walk = work.walk;
  const int total = static_cast<int>(work.end - work.begin);
  for (int n = walk.first(); n < walk.end; n = walk.next(n), ring.next()) {
    const int row = n * kMoving;
    const int count = min(kMoving, total - row);
    const int stage = ring.stage;
    copies.wait_for(&shared.empty[stage], ring.parity ^ 1);
    from_a.template copy<kMoving>(shared.moving_a[stage], row, count);
    from_b.template copy<kMoving>(shared.moving_b[stage], row, count);
    if constexpr (kBias && !P::kKeys) {
      static_assert(kCopiers == kMoving);
      const int i = static_cast<int>(threadIdx.x);
      const auto* bias = static_cast<const float*>(p.key_bias) + first + row;
      copy_async_4(&shared.bias[stage][i], bias + (i < count ? i : 0), i < count);
    }
    copies.start(&shared.full[stage]);
  }
}

/// The producer's warps that copy rows. They run ahead of the consumers into the next tile.
template <class P, bool kBias>
__device__ void copy_rows(const AttentionBwd& a, Shared<P>& shared) {
  const AttentionProblem& p = a.problem;
  Ring<kWorkStages> work_ring;
  Ring<P::kStages> ring;
  Ring<P::kFixedStages> fixed;
  Copies copies;
  for (;; work_ring.next(), fixed.next()) {
    copies.wait_for(&shared.work_full[work_ring.stage], work_ring.parity);
    const auto& work = shared.work[work_ring.stage];
    if (work.over) break;
    const Tile& t = work.tile;
    const std::int64_t row = (P::kKeys ? t.s.k_row : t.s.q_row) + t.first;
    copies.wait_for(&shared.fixed_empty[fixed.stage], fixed.parity ^ 1);
    RowSource<P::kD>(P::kKeys ? p.k : p.q, t.s.head, row)
        .template copy<P::kFixed>(shared.fixed_a[fixed.stage], 0, t.count);
    RowSource<P::kD>(P::kKeys ? p.v : a.dout, t.s.head, row)
        .template copy<P::kFixed>(shared.fixed_b[fixed.stage], 0, t.count);
    if constexpr (!P::kKeys) copy_output(a, t, shared, fixed.stage);
    copies.start(&shared.fixed_full[fixed.stage]);
    copy_moving<P, kBias>(a, work, shared, ring, copies);
    release(&shared.work_empty[work_ring.stage]);
  }
  copies.finish();
}

}  // namespace proteus::cuda
