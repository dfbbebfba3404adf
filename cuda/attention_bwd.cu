// The backward kernels for bf16 on tensor cores (mma.sync, sm_80 and later). Weights are recomputed
// from the saved log-sum-exp:
//   P = exp(S − lse),  dP = dO·Vᵀ (dropped like P),  dS = P ⊙ (dP − δ)
//   dV = Pᵀ·dO,  dK = scale·dSᵀ·Q,  dbias_j = Σ_i dS_ij        one block per tile of keys
//   dQ = scale·dS·K                                              one block per tile of queries
// S and dP are computed twice, and in return nothing is added up between blocks: no atomics, the
// same bits every time. Blocks of keys compute Sᵀ = K·Qᵀ, so that P and dS leave the tensor cores
// in the layout in which the next product takes them in.
#include "cuda/attention_anchors.cuh"
#include "cuda/attention_draws.cuh"
#include "cuda/attention_rungs.h"
#include "cuda/graph.h"

namespace proteus::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;
constexpr int kStages = 2;
constexpr int kInner = 32;  // rows per tile of what a block walks over: its columns
constexpr int kColumns = kInner / 8;

/// Blocks of 16 rows per warp: with two, each B block feeds two products; at width 128 the
/// registers do not hold the sums of two.
template <int kD>
constexpr int kBlocks = kD <= 64 ? 2 : 1;
template <int kD>
constexpr int kRows = 16 * kBlocks<kD>;
template <int kD>
constexpr int kTile = kWarps* kRows<kD>;

/// What is known of the queries beside their rows.
struct Stats {
  const float* lse;
  const float* delta;
  const std::uint64_t* later;  // see Draws
};

template <int kD>
struct KeyShared {
  alignas(128) bf16 k[kTile<kD> * kD];
  alignas(128) bf16 v[kTile<kD> * kD];
  alignas(128) bf16 q[kStages][kInner * kD];
  alignas(128) bf16 dout[kStages][kInner * kD];
  float lse[kStages][kInner];
  float delta[kStages][kInner];
  int lo[kStages][kInner];
  int hi[kStages][kInner];
};

/// Sums of a warp's keys, and their bias in units of log₂.
template <int kD>
struct KeySums {
  Accumulator<kBlocks<kD>, kD / 8> dk, dv;
  float dbias[kBlocks<kD>][2];
  float bias[kBlocks<kD>][2];
  __device__ KeySums(const float* key_bias, int count) {
    clear(dk);
    clear(dv);
#pragma unroll
    for (int m = 0; m < kBlocks<kD>; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int j = 16 * m + 8 * h + lane_id() / 4;
        bias[m][h] = key_bias && j < count ? key_bias[j] * kLog2E : 0.0f;
        dbias[m][h] = 0;
      }
    }
  }
};

/// −inf where a query (a column) does not see a key (a row, counted from `key`).
template <int kD, int kB>
__device__ void hide_queries(Accumulator<kB, kColumns>& s, const KeyShared<kD>& shared, int stage,
                             int key, int anchors) {
#pragma unroll
  for (int n = 0; n < kColumns; ++n) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int i = 8 * n + lane_id() % 4 * 2 + e;
      const int lo = shared.lo[stage][i];
      const int hi = shared.hi[stage][i];
#pragma unroll
      for (int m = 0; m < kB; ++m) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int j = key + 16 * m + 8 * h + lane_id() / 4;
          if (!sees(j, lo, hi, anchors)) s[m][n][2 * h + e] = -kInfinity<float>;
        }
      }
    }
  }
}

/// Scores and dP (keys by queries) → P, dropped, and dS. Keys count from `key`, queries from
/// `slot`.
template <int kD, bool kBias, bool kDropout, int kB>
__device__ void weigh_keys(const AttentionProblem& p, const KeyShared<kD>& shared, int stage,
                           const Draws& draws, int key, std::int64_t slot,
                           Accumulator<kB, kColumns>& s, Accumulator<kB, kColumns>& dp,
                           KeySums<kD>& sums) {
  const float scale = static_cast<float>(p.scale) * kLog2E;
  float keeps[kB][2][4];
#pragma unroll
  for (int n = 0; n < kColumns; ++n) {
    if (kDropout && n % 2 == 0) {
#pragma unroll
      for (int m = 0; m < kB; ++m) {
        draw_columns(draws, slot + 8 * n, key + 16 * m, keeps[m]);
      }
    }
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int i = 8 * n + lane_id() % 4 * 2 + e;
      const float lse = shared.lse[stage][i] * kLog2E;
      const float delta = shared.delta[stage][i];
#pragma unroll
      for (int m = 0; m < kB; ++m) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          float& score = s[m][n][2 * h + e];
          float& slope = dp[m][n][2 * h + e];
          const float shift = kBias ? sums.bias[m][h] - lse : -lse;
          const float weight = exp2_fast(fmaf(score, scale, shift));
          const float keep = kDropout ? keeps[m][n % 2][2 * h + e] : 1.0f;
          slope = weight * (slope * keep - delta);
          score = weight * keep;
          if constexpr (kBias) sums.dbias[m][h] += slope;
        }
      }
    }
  }
}

/// Starts the copies of the queries [first, first + kInner) of a segment.
template <int kD>
__device__ void load_queries(const AttentionBwd& a, const Tile& t, const Stats& stats,
                             std::int64_t first, int count, KeyShared<kD>& shared, int stage) {
  const AttentionProblem& p = a.problem;
  load_tile<kInner, kD, kThreads>(shared.q[stage], row_of<bf16>(p.q, t.s.head, t.s.q_row + first),
                                  p.q.row_stride, count);
  load_tile<kInner, kD, kThreads>(shared.dout[stage],
                                  row_of<bf16>(a.dout, t.s.head, t.s.q_row + first),
                                  a.dout.row_stride, count);
  static_assert(kThreads == 4 * kInner);
  const int i = lane_id();
  const bool inside = i < count;
  const std::int64_t at = first + (inside ? i : 0);
  switch (warp_id()) {
    case 0:
      return copy_async_4(&shared.lse[stage][i], stats.lse + t.s.slot + at, inside);
    case 1:
      return copy_async_4(&shared.delta[stage][i], stats.delta + t.s.slot + at, inside);
    case 2:
      return copy_async_4(&shared.lo[stage][i], p.lo + t.s.range + at, inside);
    default:
      return copy_async_4(&shared.hi[stage][i], p.hi + t.s.range + at, inside);
  }
}

template <int kD>
__device__ void store_keys(const AttentionBwd& a, const Tile& t, int first, KeySums<kD>& sums,
                           KeyShared<kD>& shared) {
  constexpr int kB = kBlocks<kD>;
  const std::int64_t row = t.s.k_row + t.first + first;
  const int count = t.count - first;
  float scale[kB][2];
  float one[kB][2];
#pragma unroll
  for (int m = 0; m < kB; ++m) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      scale[m][h] = static_cast<float>(a.problem.scale);
      one[m][h] = 1;
      if (!a.dkey_bias) continue;
      const float dbias = row_sum(sums.dbias[m][h]);
      const int j = 16 * m + 8 * h + lane_id() / 4;
      if (lane_id() % 4 == 0 && j < count) static_cast<float*>(a.dkey_bias)[row + j] = dbias;
    }
  }
  if (a.dk.data) {
    store_rows<kD, kB>(sums.dk, scale, shared.k + first * kD, row_of_out<bf16>(a.dk, t.s.head, row),
                       a.dk.row_stride, count);
  }
  if (a.dv.data) {
    store_rows<kD, kB>(sums.dv, one, shared.v + first * kD, row_of_out<bf16>(a.dv, t.s.head, row),
                       a.dv.row_stride, count);
  }
}

template <int kD, bool kBias, bool kDropout>
__device__ void key_tile(const AttentionBwd& a, const Tile& t, const Stats& stats,
                         const AnchorSums& far, KeyShared<kD>& shared) {
  constexpr int kB = kBlocks<kD>;
  const AttentionProblem& p = a.problem;
  const int anchors = anchors_of(p);
  const std::int64_t row = t.s.k_row + t.first;
  load_tile<kTile<kD>, kD, kThreads>(shared.k, row_of<bf16>(p.k, t.s.head, row), p.k.row_stride,
                                     t.count);
  load_tile<kTile<kD>, kD, kThreads>(shared.v, row_of<bf16>(p.v, t.s.head, row), p.v.row_stride,
                                     t.count);
  const QueryRange queries(p, t.s, t.first, t.first + t.count);
  const auto count_at = [&](std::int64_t i) {
    return static_cast<int>(min(std::int64_t{kInner}, queries.end - i));
  };
  const auto load = [&](std::int64_t i, int stage) {
    if (i < queries.end) load_queries<kD>(a, t, stats, i, count_at(i), shared, stage);
    commit_copies();
  };
  load(queries.begin, 0);
  const int first = warp_id() * kRows<kD>;
  const int key = static_cast<int>(t.first) + first;
  const auto* bias = static_cast<const float*>(p.key_bias);
  KeySums<kD> sums(kBias ? bias + row + first : nullptr, t.count - first);
  int stage = 0;
  for (std::int64_t i = queries.begin; i < queries.end; i += kInner, stage ^= 1) {
    wait_copies<0>();
    __syncthreads();  // everybody's copies have arrived, and nobody reads the other stage any more
    load(i + kInner, stage ^ 1);
    const int count = count_at(i);
    const Sight sight{shared.lo[stage][0], shared.hi[stage][0], shared.lo[stage][count - 1],
                      shared.hi[stage][count - 1]};
    if (first >= t.count || sight.nothing(key, key + kRows<kD>, anchors)) continue;
    const bool full = count == kInner && sight.everything(key, key + kRows<kD>, anchors);
    Accumulator<kB, kColumns> s;
    Accumulator<kB, kColumns> dp;
    multiply_transposed<kD>(s, SharedRows<kD, kB>{shared.k, first}, shared.q[stage]);
    multiply_transposed<kD>(dp, SharedRows<kD, kB>{shared.v, first}, shared.dout[stage]);
    if (!full) hide_queries<kD>(s, shared, stage, key, anchors);
    weigh_keys<kD, kBias, kDropout>(p, shared, stage, Draws(p, stats.later), key, t.s.slot + i, s,
                                    dp, sums);
    add_product<kD>(sums.dv, s, shared.dout[stage]);
    add_product<kD>(sums.dk, dp, shared.q[stage]);
  }
  wait_copies<0>();
  __syncthreads();
  far.add<kD, kB>(t, key, sums.dk, sums.dv, &sums.dbias[0][0]);
  if (first < t.count) store_keys<kD>(a, t, first, sums, shared);
  __syncthreads();
}

template <int kD, bool kBias, bool kDropout>
__global__ void __launch_bounds__(kThreads, kDropout ? 1 : 2)
    backward_keys(const AttentionBwd a, const TileList tiles, const Stats stats,
                  const AnchorSums far) {
  auto& shared = dynamic_shared<KeyShared<kD>>();
  for_tiles<TileOf::keys>(a.problem, tiles, kTile<kD>, [&](const Tile& t) {
    key_tile<kD, kBias, kDropout>(a, t, stats, far, shared);
  });
}

template <int kD>
struct QueryShared {
  alignas(128) bf16 q[kTile<kD> * kD];
  alignas(128) bf16 dout[kTile<kD> * kD];
  alignas(128) bf16 k[kStages][kInner * kD];
  alignas(128) bf16 v[kStages][kInner * kD];
};

/// Log-sum-exp and δ of a lane's queries.
template <int kD>
struct LaneStats {
  float lse[kBlocks<kD>][2], delta[kBlocks<kD>][2];
  __device__ LaneStats(const Stats& stats, const WarpQueries& w) {
#pragma unroll
    for (int m = 0; m < kBlocks<kD>; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int i = 16 * m + 8 * h + lane_id() / 4;
        const bool inside = i < w.count;
        lse[m][h] = inside ? stats.lse[w.slot + i] * kLog2E : kInfinity<float>;
        delta[m][h] = inside ? stats.delta[w.slot + i] : 0.0f;
      }
    }
  }
};

/// dP (queries by keys) → dS, from the scores; keys count from `key`, and `bias` belongs to it.
template <int kD, bool kBias, bool kDropout, int kB>
__device__ void weigh_queries(const AttentionProblem& p, const float* bias, int keys,
                              const Draws& draws, int key, std::int64_t slot,
                              const LaneStats<kD>& stats, const Accumulator<kB, kColumns>& s,
                              Accumulator<kB, kColumns>& dp) {
  const float scale = static_cast<float>(p.scale) * kLog2E;
  float keeps[kB][2][4];
#pragma unroll
  for (int n = 0; n < kColumns; ++n) {
    if (kDropout && n % 2 == 0) {
#pragma unroll
      for (int m = 0; m < kB; ++m) {
        draw_rows(draws, slot + 16 * m, key + 8 * n, keeps[m]);
      }
    }
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int j = 8 * n + lane_id() % 4 * 2 + e;
      const float b = kBias && j < keys ? bias[j] * kLog2E : 0.0f;
#pragma unroll
      for (int m = 0; m < kB; ++m) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const float shift = kBias ? b - stats.lse[m][h] : -stats.lse[m][h];
          const float weight = exp2_fast(fmaf(s[m][n][2 * h + e], scale, shift));
          const float keep = kDropout ? keeps[m][n % 2][2 * h + e] : 1.0f;
          float& slope = dp[m][n][2 * h + e];
          slope = weight * (slope * keep - stats.delta[m][h]);
        }
      }
    }
  }
}

template <int kD, bool kBias, bool kDropout>
__device__ void query_tile(const AttentionBwd& a, const Tile& t, const Stats& stats,
                           QueryShared<kD>& shared) {
  constexpr int kB = kBlocks<kD>;
  const AttentionProblem& p = a.problem;
  const int anchors = anchors_of(p);
  const KeyWalk walk(tile_sight(p, t), anchors, kInner);
  const auto load = [&](int tile, int stage) {
    if (tile < walk.end) {
      const std::int64_t row = t.s.k_row + static_cast<std::int64_t>(tile) * kInner;
      const int count = static_cast<int>(t.s.k_row + t.s.k_count - row);
      load_tile<kInner, kD, kThreads>(shared.k[stage], row_of<bf16>(p.k, t.s.head, row),
                                      p.k.row_stride, count);
      load_tile<kInner, kD, kThreads>(shared.v[stage], row_of<bf16>(p.v, t.s.head, row),
                                      p.v.row_stride, count);
    }
    commit_copies();
  };
  const std::int64_t row = t.s.q_row + t.first;
  load_tile<kTile<kD>, kD, kThreads>(shared.q, row_of<bf16>(p.q, t.s.head, row), p.q.row_stride,
                                     t.count);
  load_tile<kTile<kD>, kD, kThreads>(shared.dout, row_of<bf16>(a.dout, t.s.head, row),
                                     a.dout.row_stride, t.count);
  int tile = walk.first();
  load(tile, 0);
  const int first = warp_id() * kRows<kD>;
  const WarpQueries w(p, t, first, kRows<kD>);
  const LaneStats<kD> lane_stats(stats, w);
  const auto* bias = static_cast<const float*>(p.key_bias) + t.s.k_row;
  Accumulator<kB, kD / 8> dq;
  clear(dq);
  for (int stage = 0; tile < walk.end; stage ^= 1) {
    wait_copies<0>();
    __syncthreads();  // everybody's copies have arrived, and nobody reads the other stage any more
    const int next = walk.next(tile);
    load(next, stage ^ 1);
    const int key = tile * kInner;
    tile = next;
    if (w.sight.nothing(key, key + kInner, anchors)) continue;
    Accumulator<kB, kColumns> s;
    Accumulator<kB, kColumns> dp;
    multiply_transposed<kD>(s, SharedRows<kD, kB>{shared.q, first}, shared.k[stage]);
    multiply_transposed<kD>(dp, SharedRows<kD, kB>{shared.dout, first}, shared.v[stage]);
    if (!w.sight.everything(key, key + kInner, anchors)) hide(s, w, key, anchors);
    weigh_queries<kD, kBias, kDropout>(p, kBias ? bias + key : nullptr,
                                       static_cast<int>(t.s.k_count) - key, Draws(p, stats.later),
                                       key, w.slot, lane_stats, s, dp);
    add_product<kD>(dq, dp, shared.k[stage]);
  }
  wait_copies<0>();
  __syncthreads();
  float scale[kB][2];
#pragma unroll
  for (int m = 0; m < kB; ++m) scale[m][0] = scale[m][1] = static_cast<float>(p.scale);
  store_rows<kD, kB>(dq, scale, shared.q + first * kD,
                     row_of_out<bf16>(a.dq, t.s.head, row + first), a.dq.row_stride, w.count);
  __syncthreads();
}

template <int kD, bool kBias, bool kDropout>
__global__ void __launch_bounds__(kThreads, kDropout ? 1 : 2)
    backward_queries(const AttentionBwd a, const TileList tiles, const Stats stats) {
  auto& shared = dynamic_shared<QueryShared<kD>>();
  for_tiles<TileOf::queries>(a.problem, tiles, kTile<kD>, [&](const Tile& t) {
    query_tile<kD, kBias, kDropout>(a, t, stats, shared);
  });
}

template <int kD, bool kBias, bool kDropout>
void run(const AttentionBwd& a) {
  const AttentionProblem& p = a.problem;
  const QueryStats<float> prepared(a);
  prepared.compute(a);
  prepared.sinks(a);
  const Stats stats{prepared.lse(), prepared.delta(), recorded_streams()};
  if (a.dq.data) {
    const Tiles tiles(p, TileOf::queries, kTile<kD>);
    launch_shared<QueryShared<kD>>("attention_bwd: mma, queries",
                                   backward_queries<kD, kBias, kDropout>, tiles.grid(), kThreads, a,
                                   tiles.list(), stats);
  }
  if (a.dk.data || a.dv.data || a.dkey_bias) {
    const Tiles tiles(p, TileOf::keys, kTile<kD>);
    const AnchorGradient far(a, prepared);
    launch_shared<KeyShared<kD>>("attention_bwd: mma, keys", backward_keys<kD, kBias, kDropout>,
                                 tiles.grid(), kThreads, far.rest(a), tiles.list(), stats,
                                 far.sums());
  }
}

template <int kD>
void run_width(const AttentionBwd& a) {
  if (a.problem.dropout > 0) {
    a.problem.key_bias ? run<kD, true, true>(a) : run<kD, false, true>(a);
  } else {
    a.problem.key_bias ? run<kD, true, false>(a) : run<kD, false, false>(a);
  }
}

}  // namespace

bool mma_bwd_fits(const AttentionBwd& a) {
  const AttentionProblem& p = a.problem;
  bool aligned = true;
  for (const HeadRows& rows : {p.q, p.k, p.v, a.dout, a.dq, a.dk, a.dv}) {
    aligned = aligned && chunked(rows, p.dtype);
  }
  return p.dtype == DType::bf16 && (p.D == 32 || p.D == 64 || p.D == 128) && aligned &&
         capability() >= 80;
}

void attention_bwd_mma(const AttentionBwd& a) {
  switch (a.problem.D) {
    case 32:
      return run_width<32>(a);
    case 64:
      return run_width<64>(a);
    default:
      return run_width<128>(a);
  }
}

}  // namespace proteus::cuda
