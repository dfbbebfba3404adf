// The forward kernel for bf16 on tensor cores (mma.sync, sm_80 and later). A block has a tile of
// queries, 16 or 32 for each of its warps, and walks the key tiles that they see; while one is
// computed with, the next one's K and V are on their way (cp.async). Scores, softmax and output
// stay in registers: S = Q·Kᵀ comes out of the tensor cores in the layout in which P·V takes it in.
#include "cuda/attention_draws.cuh"
#include "cuda/attention_rungs.h"
#include "cuda/attention_softmax.cuh"
#include "cuda/graph.h"

namespace proteus::cuda {
namespace {

/// Queries per warp, by blocks of 16. With two, each B block feeds two products; with one,
/// registers suffice for twice as many warps, and fewer of a tile's keys lie outside of a query's
/// window.
template <int kBlocks>
constexpr int kRows = 16 * kBlocks;
constexpr int kStages = 2;
/// Keys per tile: at width 128 the output leaves few registers for scores.
template <int kD>
constexpr int kKeys = kD <= 64 ? 64 : 32;

template <int kD, int kWarps, int kBlocks>
struct Shared {
  alignas(128) bf16 q[kWarps * kRows<kBlocks> * kD];
  alignas(128) bf16 k[kStages][kKeys<kD> * kD];
  alignas(128) bf16 v[kStages][kKeys<kD> * kD];
};

/// Scores to units of log₂, with the keys' bias.
template <int kBlocks, int kColumns>
__device__ void add_bias(Accumulator<kBlocks, kColumns>& s, const float* bias, int keys,
                         float scale) {
#pragma unroll
  for (int n = 0; n < kColumns; ++n) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int j = 8 * n + lane_id() % 4 * 2 + e;
      const float b = j < keys ? bias[j] * kLog2E : 0.0f;
#pragma unroll
      for (int m = 0; m < kBlocks; ++m) {
        s[m][n][e] = fmaf(s[m][n][e], scale, b);
        s[m][n][2 + e] = fmaf(s[m][n][2 + e], scale, b);
      }
    }
  }
}

/// Multiplies the weights by 0 or 1/(1 − p).
template <int kBlocks, int kColumns>
__device__ void drop(Accumulator<kBlocks, kColumns>& s, const Draws& dropout, std::int64_t slot,
                     int first) {
#pragma unroll
  for (int m = 0; m < kBlocks; ++m) {
#pragma unroll
    for (int n = 0; n < kColumns; n += 2) {
      float keep[2][4];
      draw_rows(dropout, slot + 16 * m, first + 8 * n, keep);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        s[m][n][e] *= keep[0][e];
        s[m][n + 1][e] *= keep[1][e];
      }
    }
  }
}

/// One tile of queries.
template <int kD, int kWarps, int kBlocks, bool kBias, bool kDropout>
__device__ void forward_tile(const AttentionFwd& a, const Tile& t, const std::uint64_t* later,
                             Shared<kD, kWarps, kBlocks>& shared) {
  constexpr int kThreads = kWarps * kWarp;
  const AttentionProblem& p = a.problem;
  const int anchors = anchors_of(p);
  const KeyWalk walk(tile_sight(p, t), anchors, kKeys<kD>);
  const int first = warp_id() * kRows<kBlocks>;
  const WarpQueries w(p, t, first, kRows<kBlocks>);
  const float scale = static_cast<float>(p.scale) * kLog2E;
  const auto load_keys = [&](int tile, int stage) {
    if (tile < walk.end) {
      const std::int64_t row = t.s.k_row + static_cast<std::int64_t>(tile) * kKeys<kD>;
      const int count = static_cast<int>(t.s.k_row + t.s.k_count - row);
      load_tile<kKeys<kD>, kD, kThreads>(shared.k[stage], row_of<bf16>(p.k, t.s.head, row),
                                         p.k.row_stride, count);
      load_tile<kKeys<kD>, kD, kThreads>(shared.v[stage], row_of<bf16>(p.v, t.s.head, row),
                                         p.v.row_stride, count);
    }
    commit_copies();
  };
  load_tile<kWarps * kRows<kBlocks>, kD, kThreads>(
      shared.q, row_of<bf16>(p.q, t.s.head, t.s.q_row + t.first), p.q.row_stride, t.count);
  commit_copies();
  int tile = walk.first();
  load_keys(tile, 0);
  wait_copies<1>();
  __syncthreads();
  // At width 128 the output leaves no registers for the queries.
  using Queries = std::conditional_t<(kD <= 64), HeldRows<kD, kBlocks>, SharedRows<kD, kBlocks>>;
  const Queries q{shared.q, first};
  Softmax<kBlocks> softmax;
  RowFactors<kBlocks> shrink;
  Accumulator<kBlocks, kD / 8> o;
  clear(o);
  for (int stage = 0; tile < walk.end; stage ^= 1) {
    wait_copies<0>();
    __syncthreads();  // everybody's copies have arrived, and nobody reads the other stage any more
    const int next = walk.next(tile);
    load_keys(next, stage ^ 1);
    const int key = tile * kKeys<kD>;
    if (!w.sight.nothing(key, key + kKeys<kD>, anchors)) {
      Accumulator<kBlocks, kKeys<kD> / 8> s;
      multiply_transposed<kD>(s, q, shared.k[stage]);
      if constexpr (kBias) {
        add_bias(s, static_cast<const float*>(p.key_bias) + t.s.k_row + key,
                 static_cast<int>(t.s.k_count) - key, scale);
      }
      if (!w.sight.everything(key, key + kKeys<kD>, anchors)) hide(s, w, key, anchors);
      online_softmax(s, kBias ? 1.0f : scale, softmax, shrink);
      scale_rows(o, shrink);
      if constexpr (kDropout) drop(s, Draws(p, later), w.slot, key);
      add_product<kD>(o, s, shared.v[stage]);
    }
    tile = next;
  }
  finish<kD>(a, t, w, first, softmax, o, shared.q + first * kD);
  wait_copies<0>();
  __syncthreads();
}

template <int kD, int kWarps, int kBlocks, bool kBias, bool kDropout>
__global__ void __launch_bounds__(kWarps* kWarp, kDropout ? 1 : 16 / kWarps / kBlocks)
    forward(const AttentionFwd a, const TileList tiles, const std::uint64_t* later) {
  auto& shared = dynamic_shared<Shared<kD, kWarps, kBlocks>>();
  for_tiles<TileOf::queries>(a.problem, tiles, kWarps * kRows<kBlocks>, [&](const Tile& t) {
    forward_tile<kD, kWarps, kBlocks, kBias, kDropout>(a, t, later, shared);
  });
}

template <int kD, int kBlocks, bool kBias, bool kDropout>
void run(const AttentionFwd& a) {
  const AttentionProblem& p = a.problem;
  const auto go = [&](auto warps) {
    constexpr int kWarps = decltype(warps)::value;
    const Tiles tiles(p, TileOf::queries, kWarps * kRows<kBlocks>);
    launch_shared<Shared<kD, kWarps, kBlocks>>(
        "attention_fwd: mma", forward<kD, kWarps, kBlocks, kBias, kDropout>, tiles.grid(),
        kWarps * kWarp, a, tiles.list(), recorded_streams());
  };
  // Short segments would leave most of a large tile empty.
  const std::int64_t mean = p.queries / std::max<std::int64_t>(1, p.segment_count);
  if (mean > 2 * kRows<kBlocks>) {
    go(std::integral_constant<int, 4>{});
  } else {
    go(std::integral_constant<int, 2>{});
  }
}

// A key bias is that of routed heads, which have windows.
template <int kD>
void run_width(const AttentionFwd& a) {
  const bool bias = a.problem.key_bias != nullptr;
  if (a.problem.dropout > 0) {
    bias ? run<kD, 2, true, true>(a) : run<kD, 2, false, true>(a);
  } else {
    bias ? run<kD, kD <= 64 ? 1 : 2, true, false>(a) : run<kD, 2, false, false>(a);
  }
}

}  // namespace

bool mma_fwd_fits(const AttentionFwd& a) {
  const AttentionProblem& p = a.problem;
  return p.dtype == DType::bf16 && (p.D == 32 || p.D == 64 || p.D == 128) &&
         chunked(p.q, p.dtype) && chunked(p.k, p.dtype) && chunked(p.v, p.dtype) &&
         chunked(a.out, p.dtype) && capability() >= 80;
}

void attention_fwd_mma(const AttentionFwd& a) {
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
