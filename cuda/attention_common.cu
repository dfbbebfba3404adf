#include "cuda/attention_common.cuh"

namespace proteus::cuda {
namespace {

constexpr int kScanThreads = 1024;

// begin[n] = tiles of the segments before n: every thread sums a run of segments, then the threads'
// sums are added up.
__global__ void count_tiles(const AttentionSegment* segments, std::int64_t count, TileOf of,
                            int size, int* begin) {
  __shared__ int sums[kScanThreads];
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
  sums[me] = sum;
  for (int step = 1; step < kScanThreads; step *= 2) {
    __syncthreads();
    const int before = me >= step ? sums[me - step] : 0;
    __syncthreads();
    sums[me] += before;
  }
  int at = sums[me] - sum;
  for (std::int64_t n = first; n < last; ++n) {
    begin[n] = at;
    at += tiles(n);
  }
  if (me != kScanThreads - 1) return;
  begin[count] = at;
  begin[count + 1] = 0;  // TileList::ticket
}

constexpr int kStatsWarps = 8;
constexpr int kStatsQueries = 4 * kStatsWarps;

template <class T, class A>
__global__ void query_stats(const AttentionBwd a, const TileList tiles, A* lse, A* delta) {
  const AttentionProblem& p = a.problem;
  for_tiles<TileOf::queries>(p, tiles, kStatsQueries, [&](const Tile& t) {
    for (int i = warp_id(); i < t.count; i += kStatsWarps) {
      const std::int64_t row = t.s.q_row + t.first + i;
      const std::int64_t slot = t.s.slot + t.first + i;
      const T* out = row_of<T>(a.out, t.s.head, row);
      const T* dout = row_of<T>(a.dout, t.s.head, row);
      A sum = 0;
      for (std::int64_t d = lane_id(); d < p.D; d += kWarp) sum += A(out[d]) * A(dout[d]);
      sum = warp_sum(sum);
      if (lane_id() != 0) continue;
      const A value = static_cast<const A*>(a.lse)[slot];
      lse[slot] = value == -kInfinity<A> ? kInfinity<A> : value;
      delta[slot] = sum;
    }
  });
}

constexpr int kSinkThreads = 256;

// dsink = −Σ_i P_i,sink·δ_i of one segment, always added up in the same order.
template <class A>
__global__ void sink_gradient(const AttentionBwd a, const A* lse, const A* delta) {
  __shared__ A sums[kSinkThreads];
  const int me = static_cast<int>(threadIdx.x);
  const AttentionProblem& p = a.problem;
  for (std::int64_t n = blockIdx.x; n < p.segment_count; n += gridDim.x) {
    const AttentionSegment s = p.segments[n];
    const A sink = static_cast<const A*>(p.sink)[s.head];
    A sum = 0;
    for (std::int64_t i = s.slot + me; i < s.slot + s.q_count; i += kSinkThreads) {
      sum -= static_cast<A>(p.sink_scale) * exp(sink - lse[i]) * delta[i];
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

std::int64_t tile_bound(const AttentionProblem& p, TileOf of, int size) {
  return (of == TileOf::queries ? p.queries : p.keys) / size + p.segment_count;
}

}  // namespace

Tiles::Tiles(const AttentionProblem& p, TileOf of, int size)
    : segments_(p.segment_count),
      memory_(scratch(static_cast<std::size_t>(segments_ + 2) * sizeof(int))),
      grid_(static_cast<unsigned>(tile_bound(p, of, size))) {
  launch("attention: count_tiles", count_tiles, 1u, kScanThreads, 0, p.segments, segments_, of,
         size, static_cast<int*>(memory_.data()));
}

template <class A>
QueryStats<A>::QueryStats(const AttentionBwd& a)
    : slots_(a.problem.queries),
      memory_(scratch(static_cast<std::size_t>(2 * slots_) * sizeof(A))) {
  const AttentionProblem& p = a.problem;
  A* lse = static_cast<A*>(memory_.data());
  const Tiles tiles(p, TileOf::queries, kStatsQueries);
  const auto run = [&](auto kernel) {
    launch("attention: query_stats", kernel, tiles.grid(), kStatsWarps * kWarp, 0, a, tiles.list(),
           lse, lse + slots_);
  };
  if constexpr (sizeof(A) == 8) {
    run(query_stats<double, double>);
  } else if (p.dtype == DType::bf16) {
    run(query_stats<bfloat16, float>);
  } else {
    run(query_stats<float, float>);
  }
  if (!a.dsink) return;
  launch("attention: sink_gradient", sink_gradient<A>, static_cast<unsigned>(p.segment_count),
         kSinkThreads, 0, a, lse, lse + slots_);
}

template class QueryStats<float>;
template class QueryStats<double>;

}  // namespace proteus::cuda
