#include "cuda/attention_common.cuh"

namespace proteus::cuda {
namespace {

constexpr int kScanThreads = 1024;

// begin[n] = tiles of the segments before n: every thread sums a run of segments, then the threads'
// sums are added up.
__global__ void count_tiles(const AttentionSegment* segments, std::int64_t count, TileOf of,
                            int size, int* begin) {
  static_assert(kScanThreads == kWarp * kWarp);
  __shared__ int warps[kWarp];
  const int me = static_cast<int>(threadIdx.x);
  const auto tiles = [&](std::int64_t n) {
    const std::int64_t items = of == TileOf::queries ? segments[n].q_count : segments[n].k_count;
    return static_cast<int>((items + size - 1) / size);
  };
  const std::int64_t run = (count + kScanThreads - 1) / kScanThreads;
  const std::int64_t first = min(count, me * run);
  const std::int64_t last = min(count, first + run);
  int sum = 0;
  for (std::int64_t n = first; n < last; ++n) sum += tiles(n);
  int at = sum_up_to_lane(sum);
  if (lane_id() == kWarp - 1) warps[warp_id()] = at;
  __syncthreads();
  if (warp_id() == 0) warps[lane_id()] = sum_up_to_lane(warps[lane_id()]);
  __syncthreads();
  at += (warp_id() > 0 ? warps[warp_id() - 1] : 0) - sum;
  for (std::int64_t n = first; n < last; ++n) {
    begin[n] = at;
    at += tiles(n);
  }
  if (me != kScanThreads - 1) return;
  begin[count] = at;
  begin[count + 1] = 0;  // TileList::ticket
}

constexpr int kStatsThreads = 256;
constexpr int kStatsQueries = 128;  // per tile

/// A lane's part of Σ_d x_d·y_d, of a row that kLanes lanes share; kChunks: rows of kLanes chunks
/// of 16 bytes of bf16.
template <class T, class A, int kLanes, bool kChunks>
__device__ A partial_dot(const T* x, const T* y, std::int64_t D, int lane) {
  if constexpr (kChunks) {
    return dot_chunk(reinterpret_cast<const bf16*>(x) + lane * kChunk,
                     reinterpret_cast<const bf16*>(y) + lane * kChunk, 0);
  } else {
    A sum = 0;
    for (std::int64_t d = lane; d < D; d += kLanes) sum += A(x[d]) * A(y[d]);
    return sum;
  }
}

template <class T, class A, int kLanes, bool kChunks>
__global__ void __launch_bounds__(kStatsThreads)
    query_stats(const AttentionBwd a, const TileList tiles, A* lse, A* delta) {
  constexpr int kPass = kStatsThreads / kLanes;  // rows at a time
  const AttentionProblem& p = a.problem;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  for_tiles<TileOf::queries>(p, tiles, kStatsQueries, [&](const Tile& t) {
#pragma unroll 2
    for (int base = 0; base < t.count; base += kPass) {
      const int i = base + static_cast<int>(threadIdx.x) / kLanes;
      const bool inside = i < t.count;
      const std::int64_t row = t.s.q_row + t.first + (inside ? i : 0);
      A sum = partial_dot<T, A, kLanes, kChunks>(row_of<T>(a.out, t.s.head, row),
                                                 row_of<T>(a.dout, t.s.head, row), p.D, lane);
#pragma unroll
      for (int step = kLanes / 2; step > 0; step /= 2) {
        sum += __shfl_xor_sync(kAllLanes, sum, step);
      }
      if (!inside || lane != 0) continue;
      const std::int64_t slot = t.s.slot + t.first + i;
      lse[slot] = finite_lse(static_cast<const A*>(a.lse)[slot]);
      delta[slot] = sum;
    }
  });
}

// −Σ_i P_i,sink·δ_i of every tile of queries.
template <class A>
__global__ void __launch_bounds__(kStatsQueries)
    sinks_of_tiles(const AttentionBwd a, const TileList tiles, const A* lse, const A* delta,
                   A* sinks) {
  __shared__ A of_warps[kStatsQueries / kWarp];
  const AttentionProblem& p = a.problem;
  for_tiles<TileOf::queries>(p, tiles, kStatsQueries, [&](const Tile& t) {
    const int i = static_cast<int>(threadIdx.x);
    A of_sink = 0;
    if (i < t.count) {
      const std::int64_t slot = t.s.slot + t.first + i;
      const A sink = static_cast<const A*>(p.sink)[t.s.head];
      of_sink = -static_cast<A>(p.sink_scale) * exp(sink - lse[slot]) * delta[slot];
    }
    of_sink = warp_sum(of_sink);
    if (lane_id() == 0) of_warps[warp_id()] = of_sink;
    __syncthreads();
    if (threadIdx.x == 0) {
      A sum = 0;
      for (const A x : of_warps) sum += x;
      sinks[tiles.begin[t.segment] + t.first / kStatsQueries] = sum;
    }
    __syncthreads();
  });
}

constexpr int kSinkThreads = 256;

// dsink of one segment: the sum over its tiles, always added up in the same order.
template <class A>
__global__ void sink_gradient(const AttentionBwd a, const TileList tiles, const A* of_tiles) {
  __shared__ A sums[kSinkThreads];
  const int me = static_cast<int>(threadIdx.x);
  for (std::int64_t n = blockIdx.x; n < a.problem.segment_count; n += gridDim.x) {
    A sum = 0;
    for (int i = tiles.begin[n] + me; i < tiles.begin[n + 1]; i += kSinkThreads) {
      sum += of_tiles[i];
    }
    sums[me] = sum;
    for (int half = kSinkThreads / 2; half > 0; half /= 2) {
      __syncthreads();
      if (me < half) sums[me] += sums[me + half];
    }
    if (me == 0) static_cast<A*>(a.dsink)[n] = sums[0];
    __syncthreads();
  }
}

/// Segments handed out together: with enough tiles to even out their lengths over all
/// multiprocessors, and not so many that their rows would not stay in the cache.
int segments_together(const AttentionProblem& p, TileOf of, int size) {
  constexpr std::int64_t kTilesEach = 2;  // of a multiprocessor
  const std::int64_t items = of == TileOf::queries ? p.queries : p.keys;
  const std::int64_t tiles =
      std::max<std::int64_t>(1, items / (size * std::max<std::int64_t>(1, p.segment_count)));
  return static_cast<int>(
      std::clamp<std::int64_t>(kTilesEach * multiprocessors() / tiles, 1, kWarp));
}

std::int64_t sink_sums(const AttentionBwd& a) {
  return a.dsink ? tile_bound(a.problem, TileOf::queries, kStatsQueries) : 0;
}

}  // namespace

std::int64_t tile_bound(const AttentionProblem& p, TileOf of, int size) {
  return (of == TileOf::queries ? p.queries : p.keys) / size + p.segment_count;
}

Tiles::Tiles(const AttentionProblem& p, TileOf of, int size)
    : segments_(p.segment_count),
      together_(segments_together(p, of, size)),
      memory_(scratch(static_cast<std::size_t>(segments_ + 2) * sizeof(int))),
      grid_(static_cast<unsigned>(tile_bound(p, of, size))) {
  launch("attention: count_tiles", count_tiles, 1u, kScanThreads, 0, p.segments, segments_, of,
         size, static_cast<int*>(memory_.data()));
}

template <class A>
QueryStats<A>::QueryStats(const AttentionBwd& a)
    : slots_(a.problem.queries),
      memory_(scratch(static_cast<std::size_t>(2 * slots_ + sink_sums(a)) * sizeof(A))) {}

template <class A>
void QueryStats<A>::compute(const AttentionBwd& a) const {
  const AttentionProblem& p = a.problem;
  const Tiles tiles(p, TileOf::queries, kStatsQueries);
  const auto run = [&](auto kernel) {
    launch("attention: query_stats", kernel, tiles.grid(), kStatsThreads, 0, a, tiles.list(), lse(),
           delta());
  };
  const bool chunks = chunked(a.out, p.dtype) && chunked(a.dout, p.dtype);
  if constexpr (sizeof(A) == 8) {
    run(query_stats<double, double, kWarp, false>);
  } else if (p.dtype == DType::f32) {
    run(query_stats<float, float, kWarp, false>);
  } else if (chunks && p.D == 32) {
    run(query_stats<bfloat16, float, 4, true>);
  } else if (chunks && p.D == 64) {
    run(query_stats<bfloat16, float, 8, true>);
  } else if (chunks && p.D == 128) {
    run(query_stats<bfloat16, float, 16, true>);
  } else {
    run(query_stats<bfloat16, float, kWarp, false>);
  }
}

template <class A>
void QueryStats<A>::sinks(const AttentionBwd& a) const {
  if (!a.dsink) return;
  const Tiles tiles(a.problem, TileOf::queries, kStatsQueries);
  A* of_tiles = lse() + 2 * slots_;
  launch("attention: sinks_of_tiles", sinks_of_tiles<A>, tiles.grid(), kStatsQueries, 0, a,
         tiles.list(), lse(), delta(), of_tiles);
  launch("attention: sink_gradient", sink_gradient<A>,
         static_cast<unsigned>(a.problem.segment_count), kSinkThreads, 0, a, tiles.list(),
         of_tiles);
}

template class QueryStats<float>;
template class QueryStats<double>;

}  // namespace proteus::cuda
