#include <bit>

#include "cuda/attention_anchors.cuh"

namespace proteus::cuda {
namespace {

constexpr int kTileQueries = 1024;
constexpr int kThreads = 128;
constexpr int kGroup = 4;  // anchors at a time: their rows and their sums lie in registers
constexpr std::int64_t kMostAnchors = 16;
/// Mean queries per segment below which the walk costs less than three more launches.
constexpr std::int64_t kLongSegment = 2048;

/// Eight neighbours of a row.
struct Eight {
  float v[8];
  __device__ explicit Eight(const bf16* from, bool inside) {
    const uint4 four = inside ? *reinterpret_cast<const uint4*>(from) : uint4{0, 0, 0, 0};
    const std::uint32_t words[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      v[2 * i] = std::bit_cast<float>(words[i] << 16);
      v[2 * i + 1] = std::bit_cast<float>(words[i] & 0xffff0000u);
    }
  }
};

template <int kLanes>
__device__ float dot(const float (&x)[8], const Eight& y) {
  float sum = 0;
#pragma unroll
  for (int d = 0; d < 8; ++d) sum = fmaf(x[d], y.v[d], sum);
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
  return sum;
}

/// A group of anchors, eight neighbours of their rows per lane, and their sums.
template <int kD>
struct Group {
  static constexpr int kLanes = kD / 8;  // that share a row
  static constexpr int kRow = 2 * kD + 1;
  float k[kGroup][8], v[kGroup][8], bias[kGroup];
  float dk[kGroup][8] = {}, dv[kGroup][8] = {}, dbias[kGroup] = {};

  __device__ Group(const AttentionProblem& p, const AttentionSegment& s, int first) {
    const int part = lane_id() % kLanes * 8;
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      const bool inside = first + j < s.k_count;
      const std::int64_t row = s.k_row + (inside ? first + j : 0);
      const Eight key(row_of<bf16>(p.k, s.head, row) + part, inside);
      const Eight value(row_of<bf16>(p.v, s.head, row) + part, inside);
#pragma unroll
      for (int d = 0; d < 8; ++d) {
        k[j][d] = key.v[d];
        v[j][d] = value.v[d];
      }
      const auto* all = static_cast<const float*>(p.key_bias);
      bias[j] = all && inside ? all[row] * kLog2E : 0.0f;
    }
  }
  /// The first `seen` of the anchors are seen.
  __device__ void add(const Eight& q, const Eight& dout, float scale, float lse, float delta,
                      int seen) {
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      const float score = fmaf(dot<kLanes>(k[j], q), scale, bias[j]) - lse;
      const float weight = j < seen ? exp2_fast(score) : 0.0f;
      const float slope = weight * (dot<kLanes>(v[j], dout) - delta);
#pragma unroll
      for (int d = 0; d < 8; ++d) {
        dk[j][d] = fmaf(slope, q.v[d], dk[j][d]);
        dv[j][d] = fmaf(weight, dout.v[d], dv[j][d]);
      }
      dbias[j] += slope;
    }
  }
  __device__ static float over_rows(float x) {
#pragma unroll
    for (int step = kLanes; step < kWarp; step *= 2) x += __shfl_xor_sync(kAllLanes, x, step);
    return x;
  }
  __device__ void store(float (&to)[kGroup][kRow]) const {
    const bool mine = lane_id() < kLanes;
    const int part = lane_id() % kLanes * 8;
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
#pragma unroll
      for (int d = 0; d < 8; ++d) {
        const float key = over_rows(dk[j][d]);
        const float value = over_rows(dv[j][d]);
        if (!mine) continue;
        to[j][part + d] = key;
        to[j][kD + part + d] = value;
      }
      const float slope = over_rows(dbias[j]);
      if (lane_id() == 0) to[j][2 * kD] = slope;
    }
  }
};

/// partials [tile, anchor, 2·D + 1]; blockIdx.y: group of anchors.
template <int kD>
__global__ void __launch_bounds__(kThreads)
    sums_of_tiles(const AttentionBwd a, const TileList tiles, const float* lse, const float* delta,
                  float* partials) {
  using G = Group<kD>;
  constexpr int kPass = kThreads / G::kLanes;  // queries at a time
  __shared__ float shared[kThreads / kWarp][kGroup][G::kRow];
  const AttentionProblem& p = a.problem;
  const int anchors = anchors_of(p);
  const int first = static_cast<int>(blockIdx.y) * kGroup;
  const int part = lane_id() % G::kLanes * 8;
  const float scale = static_cast<float>(p.scale) * kLog2E;
  for_tiles<TileOf::queries>(p, tiles, kTileQueries, [&](const Tile& t) {
    const std::int32_t* lo = p.lo + t.s.range + t.first;
    G group(p, t.s, first);
    const int end = lo[t.count - 1] > first ? t.count : 0;  // nobody, if not the last one
#pragma unroll 2
    for (int base = 0; base < end; base += kPass) {
      const int i = base + static_cast<int>(threadIdx.x) / G::kLanes;
      const bool inside = i < t.count;
      const std::int64_t at = t.first + (inside ? i : 0);
      const Eight q(row_of<bf16>(p.q, t.s.head, t.s.q_row + at) + part, inside);
      const Eight dout(row_of<bf16>(a.dout, t.s.head, t.s.q_row + at) + part, inside);
      const std::int64_t slot = t.s.slot + at;
      group.add(q, dout, scale, lse[slot] * kLog2E, delta[slot],
                inside ? min(anchors, lo[i]) - first : 0);
    }
    group.store(shared[warp_id()]);
    __syncthreads();
    const std::int64_t tile = tiles.begin[t.segment] + t.first / kTileQueries;
    for (int at = static_cast<int>(threadIdx.x); at < kGroup * G::kRow; at += kThreads) {
      const int j = at / G::kRow;
      if (first + j >= anchors) break;
      float sum = 0;
#pragma unroll
      for (const auto& warp : shared) sum += warp[j][at % G::kRow];
      partials[(tile * anchors + first + j) * G::kRow + at % G::kRow] = sum;
    }
    __syncthreads();
  });
}

/// sums [segment, anchor, width] = Σ over the segment's tiles, in their order. A block per anchor.
__global__ void sums_of_segments(const TileList tiles, int anchors, int width,
                                 const float* partials, float* sums) {
  const std::int64_t n = blockIdx.x / anchors;
  const std::int64_t anchor = blockIdx.x % anchors;
  for (int c = static_cast<int>(threadIdx.x); c < width; c += kThreads) {
    float sum = 0;
#pragma unroll 8
    for (std::int64_t tile = tiles.begin[n]; tile < tiles.begin[n + 1]; ++tile) {
      sum += partials[(tile * anchors + anchor) * width + c];
    }
    sums[(n * anchors + anchor) * width + c] = sum;
  }
}

std::int64_t width_of(const AttentionProblem& p) { return 2 * p.D + 1; }

int anchors_apart(const AttentionProblem& p) {
  const bool apart =
      p.dropout == 0 && p.anchors <= kMostAnchors && p.queries >= kLongSegment * p.segment_count;
  return apart ? static_cast<int>(p.anchors) : 0;
}

std::size_t bytes_of(const AttentionProblem& p) {
  const std::int64_t rows =
      anchors_apart(p) * (p.segment_count + tile_bound(p, TileOf::queries, kTileQueries));
  return static_cast<std::size_t>(rows * width_of(p)) * sizeof(float);
}

}  // namespace

AnchorGradient::AnchorGradient(const AttentionBwd& a, const QueryStats<float>& stats)
    : anchors_(anchors_apart(a.problem)), memory_(scratch(bytes_of(a.problem))) {
  if (anchors_ == 0) return;
  const AttentionProblem& p = a.problem;
  const auto width = static_cast<int>(width_of(p));
  const Tiles tiles(p, TileOf::queries, kTileQueries);
  auto* sums = static_cast<float*>(memory_.data());
  float* of_tiles = sums + p.segment_count * anchors_ * width;
  const dim3 grid(tiles.grid(), static_cast<unsigned>((anchors_ + kGroup - 1) / kGroup));
  const auto run = [&](auto kernel) {
    launch("attention_bwd: anchors", kernel, grid, kThreads, 0, a, tiles.list(), stats.lse(),
           stats.delta(), of_tiles);
  };
  p.D == 32 ? run(sums_of_tiles<32>) : p.D == 64 ? run(sums_of_tiles<64>) : run(sums_of_tiles<128>);
  launch("attention_bwd: anchors", sums_of_segments,
         static_cast<unsigned>(p.segment_count * anchors_), kThreads, 0, tiles.list(), anchors_,
         width, of_tiles, sums);
}

}  // namespace proteus::cuda
