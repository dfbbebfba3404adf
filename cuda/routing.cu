// Routing on a GPU (tensor/ops/routing.h has the formulas): the logits of all tokens, and which
// keys a packed query sees. What a token gets depends on itself alone. Packed rows:
// cuda/gate_rows.cu.
#include <algorithm>
#include <limits>

#include "cuda/gate_rows.h"
#include "cuda/gate_scores.cuh"
#include "cuda/kernels.h"

namespace proteus::cuda {
namespace {

// 1/|x| of the block's tokens.
template <class T>
__device__ void load_inverse(const GateLogitsFwd& a, std::int64_t n0, LogitShared<T>& shared) {
  constexpr int kSharers = kLogitThreads / kLogitTile<T>;
  const int token = static_cast<int>(threadIdx.x) / kSharers;
  const T* x = static_cast<const T*>(a.x) + (n0 + token) * a.gates.R;
  T square = 0;
  if (n0 + token < a.N) {
    for (std::int64_t r = threadIdx.x % kSharers; r < a.gates.R; r += kSharers) {
      square += x[r] * x[r];
    }
  }
  for (int step = kSharers / 2; step > 0; step /= 2) {
    square += __shfl_xor_sync(kAllLanes, square, step);
  }
  if (threadIdx.x % kSharers == 0) shared.inverse[token] = inverse_root(square);
}

// shared.scores = s + log m of the gates at order[first, first + count).
template <class T, bool kPrototypes>
__device__ void score_tile(const GateLogitsFwd& a, std::int32_t first, int count,
                           LogitShared<T>& shared, TileScores<T>& tile) {
  const int t = static_cast<int>(threadIdx.x);
  __syncthreads();
  if (t < kTileGates) {
    // Past the tile's gates any gate will do: its scores are not looked at.
    const std::int64_t at = first + max(0, min(t, count - 1));
    const std::int32_t g = a.gates.order[min(at, a.gates.G - 1)];
    shared.gate[t] = g;
    shared.log_mass[t] = vmath::log(static_cast<const T*>(a.gates.mass)[g]);
  }
  tile.template score<kPrototypes>(a, count, shared);
  __syncthreads();
}

// top and sum: the largest score so far, and Σ exp(score − top).
template <class T>
__device__ void add_scores(const T* scores, int count, T& top, T& sum) {
  const T before = top;
  for (int g = 0; g < count; ++g) top = max(top, scores[g]);
  sum *= vmath::exp(before - top);
  for (int g = 0; g < count; ++g) sum += vmath::exp(scores[g] - top);
}

// The logits of all heads: a block computes a tile of tokens × gates, z of the heads in it, and
// goes on to the next gates. A tile begins with a head's first gate and holds whole heads, so that
// the order in which a head is summed depends on nothing but its gates; a head too large for a tile
// is cut from its first gate on.
template <class T, bool kPrototypes>
__global__ void __launch_bounds__(kLogitThreads)
    gate_logits_kernel(GateLogitsFwd a, std::int64_t heads_of_block) {
  constexpr int kTile = kLogitTile<T>;
  __shared__ LogitShared<T> shared;
  const std::int64_t n0 = static_cast<std::int64_t>(blockIdx.x) * kTile;
  const std::int64_t stop = min(a.gates.Hr, heads_of_block * (blockIdx.y + 1));
  const std::int32_t* begin = a.gates.head_begin;
  const int t = static_cast<int>(threadIdx.x);
  T* z = static_cast<T*>(a.z) + n0 * a.gates.Hr;
  TileScores<T> tile(n0);
  load_inverse(a, n0, shared);
  for (std::int64_t h = heads_of_block * blockIdx.y; h < stop;) {
    const std::int32_t first = begin[h];
    const int heads = __syncthreads_count(h + t < stop && begin[h + t + 1] - first <= kTileGates);
    if (heads > 0) {
      score_tile<T, kPrototypes>(a, first, begin[h + heads] - first, shared, tile);
      for (int i = t; i < kTile * heads; i += kLogitThreads) {
        const int token = i / heads;
        const std::int64_t head = h + i % heads;
        const T* scores = &shared.scores[token][begin[head] - first];
        const int count = begin[head + 1] - begin[head];
        T top = scores[0];
        if (count > 1) {  // of a single one the exponential is 1 and its logarithm 0
          T sum = 0;
          add_scores(scores, count, top, sum);
          top += vmath::log(sum);
        }
        if (n0 + token < a.N) z[token * a.gates.Hr + head] = top;
      }
      h += heads;
      continue;
    }
    T top = -std::numeric_limits<T>::max();
    T sum = 0;
    for (std::int32_t g = first; g < begin[h + 1]; g += kTileGates) {
      const int count = min(kTileGates, begin[h + 1] - g);
      score_tile<T, kPrototypes>(a, g, count, shared, tile);
      if (t < kTile) add_scores(shared.scores[t], count, top, sum);
    }
    if (t < kTile && n0 + t < a.N) z[t * a.gates.Hr + h] = top + vmath::log(sum);
    ++h;
  }
  if (a.nearest) tile.write_nearest(a);
}

template <class T>
void gate_logits_typed(const GateLogitsFwd& a) {
  // Few tokens: blocks share the heads among them, unless one has to see all gates.
  constexpr std::int64_t kBlocks = 264;
  constexpr std::int64_t kFewestHeads = 8;
  const std::int64_t tiles = ceil_div(a.N, std::int64_t{kLogitTile<T>});
  const std::int64_t parts = a.nearest
                                 ? 1
                                 : std::clamp<std::int64_t>(ceil_div(kBlocks, tiles), 1,
                                                            ceil_div(a.gates.Hr, kFewestHeads));
  const std::int64_t heads = ceil_div(a.gates.Hr, parts);
  const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(ceil_div(a.gates.Hr, heads)));
  launch("gate_logits_fwd", a.gates.p ? gate_logits_kernel<T, true> : gate_logits_kernel<T, false>,
         grid, kLogitThreads, 0, a, heads);
}

__global__ void key_ranges_kernel(KeyRangesFwd a) {
  const std::int64_t q = thread_unit();
  if (q < a.segments) a.streams[q] = stream_of(a, q);
  if (q >= a.queries) return;
  const std::int64_t segment = part_of(a.q_offsets, 1, a.segments, q);
  const std::int32_t first = a.k_offsets[segment];
  // The first key of the segment that is later than the query.
  std::int32_t low = first;
  std::int32_t high = a.k_offsets[segment + 1];
  while (low < high) {
    const std::int32_t middle = low + (high - low) / 2;
    if (a.k_token[middle] <= a.q_token[q]) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  a.hi[q] = low - first;
  a.lo[q] = low - first - a.visible[low - first];
}

void key_ranges(const KeyRangesFwd& a) {
  launch("key_ranges_fwd", key_ranges_kernel, thread_blocks(std::max(a.queries, a.segments)),
         kBlock, 0, a);
}

}  // namespace

void install_routing_kernels() {
  // f64 or f32: routing knows no other dtype.
  gate_logits_fwd.install(DeviceType::cuda, [](const GateLogitsFwd& a) {
    a.dtype == DType::f64 ? gate_logits_typed<double>(a) : gate_logits_typed<float>(a);
  });
  gate_rows_fwd.install(DeviceType::cuda, gate_rows_forward);
  gate_rows_bwd.install(DeviceType::cuda, gate_rows_backward);
  prototype_stats.install(DeviceType::cuda, prototype_sums);
  key_ranges_fwd.install(DeviceType::cuda, key_ranges);
}

}  // namespace proteus::cuda
