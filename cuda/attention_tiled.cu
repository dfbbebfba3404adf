// The rung for f32: tiles in shared memory and fused multiply-adds, full f32 precision. A block is
// 16×16 threads and has 64 rows (queries, or keys in the key pass of the backward); it walks the
// columns in tiles. Thread (y, x) has rows 4·y to 4·y + 3, and of a product the columns x, x + 16,
// …
#include "cuda/attention_rungs.h"
#include "cuda/float_tile.cuh"

namespace proteus::cuda {
namespace {

/// Columns per tile of the forward pass and of the backward passes.
template <int kD>
constexpr int kForwardColumns = kD <= 64 ? 64 : 32;
constexpr int kBackwardColumns = 32;

/// What is known of one query; nothing is seen by a row that is not there.
struct Query {
  int lo = 0, hi = 0;
  float lse = kInfinity<float>, delta = 0;
};
struct Stats {
  const float* lse;
  const float* delta;
};
__device__ inline Query query_at(const AttentionProblem& p, const AttentionSegment& s,
                                 std::int64_t i, bool inside, const Stats& stats) {
  Query q;
  if (!inside) return q;
  q.lo = p.lo[s.range + i];
  q.hi = p.hi[s.range + i];
  if (!stats.lse) return q;
  q.lse = stats.lse[s.slot + i];
  q.delta = stats.delta[s.slot + i];
  return q;
}

__device__ inline float bias_at(const AttentionProblem& p, const AttentionSegment& s, int key) {
  const bool there = p.key_bias && key < s.k_count;
  return there ? static_cast<const float*>(p.key_bias)[s.k_row + key] * kLog2E : 0.0f;
}

template <int kD>
struct ForwardShared {
  FloatTile<kRows, kD> q;
  FloatTile<kForwardColumns<kD>, kD> k, v;
  FloatTile<kRows, kForwardColumns<kD>> weights;
};

struct Softmax {
  float top = -kInfinity<float>;  // in units of log₂
  float sum = 0;                  // this thread's columns
};

/// Scores of one query and the keys key + thread_x() + 16·c → weights; returns how what was summed
/// before shrinks. The weights are dropped, their sum is not.
template <int kC>
__device__ float weigh(float (&s)[kC], const AttentionProblem& p, const AttentionSegment& segment,
                       const Query& q, std::int64_t i, int key, Softmax& softmax) {
  const float scale = static_cast<float>(p.scale) * kLog2E;
  const int anchors = anchors_of(p);
  float top = -kInfinity<float>;
#pragma unroll
  for (int c = 0; c < kC; ++c) {
    const int j = key + thread_x() + kSide * c;
    s[c] = sees(j, q.lo, q.hi, anchors) ? fmaf(s[c], scale, bias_at(p, segment, j))
                                        : -kInfinity<float>;
    top = fmaxf(top, s[c]);
  }
  top = fmaxf(softmax.top, over_row(top, [](float a, float b) { return fmaxf(a, b); }));
  const float base = top == -kInfinity<float> ? 0.0f : top;
  const float shrink = exp2_fast(softmax.top - base);
  softmax.top = top;
  softmax.sum *= shrink;
#pragma unroll
  for (int c = 0; c < kC; ++c) {
    s[c] = exp2_fast(s[c] - base);
    softmax.sum += s[c];
    if (p.dropout > 0) {
      s[c] *= Dropout<float>(p).of(segment.slot + i, key + thread_x() + kSide * c);
    }
  }
  return shrink;
}

/// Divides a row by its denominator, sink included; returns the log-sum-exp.
template <int kD>
__device__ float normalise(const AttentionProblem& p, std::int64_t head, const Softmax& softmax,
                           int r, Sums<kD>& o) {
  const bool with_sink = p.sink && p.sink_scale > 0;
  const float sink = with_sink ? static_cast<const float*>(p.sink)[head] : -kInfinity<float>;
  const float top = softmax.top * kLn2;
  const float base = fmaxf(top, sink);
  const float sum = row_total(softmax.sum);
  if (base == -kInfinity<float>) {
    o.scale(r, 0);
    return base;
  }
  const float shrink = expf(top - base);
  const float total =
      sum * shrink + (with_sink ? static_cast<float>(p.sink_scale) * expf(sink - base) : 0.0f);
  o.scale(r, shrink / total);
  return base + logf(total);
}

template <int kD>
__device__ void forward_tile(const AttentionFwd& a, const Tile& t, ForwardShared<kD>& shared) {
  constexpr int kColumns = kForwardColumns<kD>;
  const AttentionProblem& p = a.problem;
  const std::int64_t head = t.s.head;
  const std::int64_t row = t.s.q_row + t.first;
  const KeyWalk walk(tile_sight(p, t), anchors_of(p), kColumns);
  shared.q.load(row_of<float>(p.q, head, row), p.q.row_stride, t.count);
  Query query[kEach];
  Softmax softmax[kEach];
  Sums<kD> o;
#pragma unroll
  for (int r = 0; r < kEach; ++r) {
    const int i = thread_row() + r;
    query[r] = query_at(p, t.s, t.first + i, i < t.count, {});
  }
  for (int tile = walk.first(); tile < walk.end; tile = walk.next(tile)) {
    const int key = tile * kColumns;
    const int count = static_cast<int>(t.s.k_count) - key;
    shared.k.load(row_of<float>(p.k, head, t.s.k_row + key), p.k.row_stride, count);
    shared.v.load(row_of<float>(p.v, head, t.s.k_row + key), p.v.row_stride, count);
    arrive();
    float s[kEach][kColumns / kSide];
    dots<kD>(s, shared.q, shared.k);
#pragma unroll
    for (int r = 0; r < kEach; ++r) {
      const std::int64_t i = t.first + thread_row() + r;
      o.scale(r, weigh(s[r], p, t.s, query[r], i, key, softmax[r]));
    }
    keep_weights(shared.weights, s);
    __syncthreads();
    o.add(shared.weights, shared.v);
    __syncthreads();
  }
  arrive();
#pragma unroll
  for (int r = 0; r < kEach; ++r) {
    const float lse = normalise(p, head, softmax[r], r, o);
    const int i = thread_row() + r;
    if (thread_x() == 0 && i < t.count) static_cast<float*>(a.lse)[t.s.slot + t.first + i] = lse;
  }
  o.store(row_of_out<float>(a.out, head, row), a.out.row_stride, t.count);
  __syncthreads();
}

template <int kD>
__global__ void __launch_bounds__(kThreads) forward(const AttentionFwd a, const TileList tiles) {
  auto& shared = dynamic_shared<ForwardShared<kD>>();
  for_tiles<TileOf::queries>(a.problem, tiles, kRows,
                             [&](const Tile& t) { forward_tile<kD>(a, t, shared); });
}

/// The backward passes: `fixed` rows stay, `moving` ones pass by.
template <int kD>
struct BackwardShared {
  FloatTile<kRows, kD> fixed_a, fixed_b;
  FloatTile<kBackwardColumns, kD> moving_a, moving_b;
  FloatTile<kRows, kBackwardColumns> weights, slopes;
};

/// Score and dP of a pair → weight (dropped) and dS.
__device__ inline void slope_of(const AttentionProblem& p, const AttentionSegment& s,
                                const Query& q, std::int64_t i, int key, float bias, float& score,
                                float& slope) {
  const float scale = static_cast<float>(p.scale) * kLog2E;
  const bool seen = sees(key, q.lo, q.hi, anchors_of(p));
  const float weight = seen ? exp2_fast(fmaf(score, scale, bias - q.lse * kLog2E)) : 0.0f;
  const float keep = p.dropout > 0 ? Dropout<float>(p).of(s.slot + i, key) : 1.0f;
  slope = weight * (slope * keep - q.delta);
  score = weight * keep;
}

template <int kD>
__device__ void query_tile(const AttentionBwd& a, const Tile& t, const Stats& stats,
                           BackwardShared<kD>& shared) {
  constexpr int kC = kBackwardColumns / kSide;
  const AttentionProblem& p = a.problem;
  const std::int64_t head = t.s.head;
  const std::int64_t row = t.s.q_row + t.first;
  const KeyWalk walk(tile_sight(p, t), anchors_of(p), kBackwardColumns);
  shared.fixed_a.load(row_of<float>(p.q, head, row), p.q.row_stride, t.count);
  shared.fixed_b.load(row_of<float>(a.dout, head, row), a.dout.row_stride, t.count);
  Query query[kEach];
#pragma unroll
  for (int r = 0; r < kEach; ++r) {
    const int i = thread_row() + r;
    query[r] = query_at(p, t.s, t.first + i, i < t.count, stats);
  }
  Sums<kD> dq;
  for (int tile = walk.first(); tile < walk.end; tile = walk.next(tile)) {
    const int key = tile * kBackwardColumns;
    const int count = static_cast<int>(t.s.k_count) - key;
    shared.moving_a.load(row_of<float>(p.k, head, t.s.k_row + key), p.k.row_stride, count);
    shared.moving_b.load(row_of<float>(p.v, head, t.s.k_row + key), p.v.row_stride, count);
    arrive();
    float s[kEach][kC];
    float dp[kEach][kC];
    dots<kD>(s, shared.fixed_a, shared.moving_a);
    dots<kD>(dp, shared.fixed_b, shared.moving_b);
#pragma unroll
    for (int c = 0; c < kC; ++c) {
      const int j = key + thread_x() + kSide * c;
      const float bias = bias_at(p, t.s, j);
#pragma unroll
      for (int r = 0; r < kEach; ++r) {
        const std::int64_t i = t.first + thread_row() + r;
        slope_of(p, t.s, query[r], i, j, bias, s[r][c], dp[r][c]);
      }
    }
    keep_weights(shared.slopes, dp);
    __syncthreads();
    dq.add(shared.slopes, shared.moving_a);
    __syncthreads();
  }
  arrive();
#pragma unroll
  for (int r = 0; r < kEach; ++r) dq.scale(r, static_cast<float>(p.scale));
  dq.store(row_of_out<float>(a.dq, head, row), a.dq.row_stride, t.count);
  __syncthreads();
}

template <int kD>
__device__ void store_keys(const AttentionBwd& a, const Tile& t, Sums<kD>& dk, const Sums<kD>& dv,
                           const float (&dbias)[kEach]) {
  const std::int64_t row = t.s.k_row + t.first;
#pragma unroll
  for (int r = 0; r < kEach; ++r) {
    dk.scale(r, static_cast<float>(a.problem.scale));
    if (!a.dkey_bias) continue;
    const float total = row_total(dbias[r]);
    const int j = thread_row() + r;
    if (thread_x() == 0 && j < t.count) static_cast<float*>(a.dkey_bias)[row + j] = total;
  }
  if (a.dk.data) dk.store(row_of_out<float>(a.dk, t.s.head, row), a.dk.row_stride, t.count);
  if (a.dv.data) dv.store(row_of_out<float>(a.dv, t.s.head, row), a.dv.row_stride, t.count);
}

template <int kD>
__device__ void key_tile(const AttentionBwd& a, const Tile& t, const Stats& stats,
                         BackwardShared<kD>& shared) {
  constexpr int kC = kBackwardColumns / kSide;
  const AttentionProblem& p = a.problem;
  const std::int64_t head = t.s.head;
  const std::int64_t row = t.s.k_row + t.first;
  const QueryRange queries(p, t.s, t.first, t.first + t.count);
  shared.fixed_a.load(row_of<float>(p.k, head, row), p.k.row_stride, t.count);
  shared.fixed_b.load(row_of<float>(p.v, head, row), p.v.row_stride, t.count);
  float bias[kEach];
  float dbias[kEach] = {};
#pragma unroll
  for (int r = 0; r < kEach; ++r) {
    bias[r] = bias_at(p, t.s, static_cast<int>(t.first) + thread_row() + r);
  }
  Sums<kD> dk;
  Sums<kD> dv;
  for (std::int64_t first = queries.begin; first < queries.end; first += kBackwardColumns) {
    const auto count = static_cast<int>(min(std::int64_t{kBackwardColumns}, queries.end - first));
    shared.moving_a.load(row_of<float>(p.q, head, t.s.q_row + first), p.q.row_stride, count);
    shared.moving_b.load(row_of<float>(a.dout, head, t.s.q_row + first), a.dout.row_stride, count);
    arrive();
    float s[kEach][kC];
    float dp[kEach][kC];
    dots<kD>(s, shared.fixed_a, shared.moving_a);
    dots<kD>(dp, shared.fixed_b, shared.moving_b);
#pragma unroll
    for (int c = 0; c < kC; ++c) {
      const int i = thread_x() + kSide * c;
      const Query q = query_at(p, t.s, first + i, i < count, stats);
#pragma unroll
      for (int r = 0; r < kEach; ++r) {
        const int j = static_cast<int>(t.first) + thread_row() + r;
        slope_of(p, t.s, q, first + i, j, bias[r], s[r][c], dp[r][c]);
        dbias[r] += dp[r][c];
      }
    }
    keep_weights(shared.weights, s);
    keep_weights(shared.slopes, dp);
    __syncthreads();
    dv.add(shared.weights, shared.moving_b);
    dk.add(shared.slopes, shared.moving_a);
    __syncthreads();
  }
  arrive();
  store_keys<kD>(a, t, dk, dv, dbias);
  __syncthreads();
}

template <int kD>
__global__ void __launch_bounds__(kThreads)
    backward_queries(const AttentionBwd a, const TileList tiles, const Stats stats) {
  auto& shared = dynamic_shared<BackwardShared<kD>>();
  for_tiles<TileOf::queries>(a.problem, tiles, kRows,
                             [&](const Tile& t) { query_tile<kD>(a, t, stats, shared); });
}

template <int kD>
__global__ void __launch_bounds__(kThreads)
    backward_keys(const AttentionBwd a, const TileList tiles, const Stats stats) {
  auto& shared = dynamic_shared<BackwardShared<kD>>();
  for_tiles<TileOf::keys>(a.problem, tiles, kRows,
                          [&](const Tile& t) { key_tile<kD>(a, t, stats, shared); });
}

template <int kD>
void run(const AttentionFwd& a) {
  const Tiles tiles(a.problem, TileOf::queries, kRows);
  launch_shared<ForwardShared<kD>>("attention_fwd: tiled", forward<kD>, tiles.grid(), kThreads, a,
                                   tiles.list());
}

template <int kD>
void run(const AttentionBwd& a) {
  const QueryStats<float> prepared(a);
  prepared.compute(a);
  prepared.sinks(a);
  const Stats stats{prepared.lse(), prepared.delta()};
  if (a.dq.data) {
    const Tiles tiles(a.problem, TileOf::queries, kRows);
    launch_shared<BackwardShared<kD>>("attention_bwd: tiled, queries", backward_queries<kD>,
                                      tiles.grid(), kThreads, a, tiles.list(), stats);
  }
  if (a.dk.data || a.dv.data || a.dkey_bias) {
    const Tiles tiles(a.problem, TileOf::keys, kRows);
    launch_shared<BackwardShared<kD>>("attention_bwd: tiled, keys", backward_keys<kD>, tiles.grid(),
                                      kThreads, a, tiles.list(), stats);
  }
}

template <class Args>
void run_width(const Args& a) {
  switch (a.problem.D) {
    case 32:
      return run<32>(a);
    case 64:
      return run<64>(a);
    default:
      return run<128>(a);
  }
}

bool fits(const AttentionProblem& p) {
  return p.dtype == DType::f32 && (p.D == 32 || p.D == 64 || p.D == 128) && chunked(p.q, p.dtype) &&
         chunked(p.k, p.dtype) && chunked(p.v, p.dtype) && capability() >= 80;
}

}  // namespace

bool tiled_fwd_fits(const AttentionFwd& a) { return fits(a.problem); }
void attention_fwd_tiled(const AttentionFwd& a) { run_width(a); }
bool tiled_bwd_fits(const AttentionBwd& a) {
  return fits(a.problem) && chunked(a.dout, a.problem.dtype);
}
void attention_bwd_tiled(const AttentionBwd& a) { run_width(a); }

}  // namespace proteus::cuda
