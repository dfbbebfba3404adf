// Routing on a GPU (tensor/ops/routing.h has the formulas): the logits of all tokens, and which
// keys a packed query sees. What a token gets depends on itself alone. Packed rows:
// cuda/gate_rows.cu.
#include <algorithm>
#include <limits>

#include "cuda/gate_rows.h"
#include "cuda/kernels.h"
#include "cuda/rows.cuh"
#include "tensor/ops/routing.h"
#include "tensor/vmath.h"

namespace proteus::cuda {
namespace {

// The logits of all heads: a block computes a tile of tokens × gates, z of the heads in it, and
// goes on to the next gates. A tile begins with a head's first gate and holds whole heads, so that
// the order in which a head is summed depends on nothing but its gates; a head too large for a tile
// is cut from its first gate on.
constexpr int kTile = 64;  // tokens
constexpr int kLogitThreads = 256;
template <class T>
constexpr int kDepth = sizeof(T) == 8 ? 16 : 32;

template <class T, int kGates>
struct LogitShared {
  struct Chunk {
    T x[kDepth<T>][kTile + 4];
    T w[kDepth<T>][kGates + 4];
    T p[kDepth<T>][kGates + 4];
  };
  union {
    Chunk chunk;
    T scores[kTile][kGates + 1];  // [token][gate]
  };
  T inverse[kTile];
  T log_mass[kGates];
  std::int32_t gate[kGates];
};

// The gate with the largest p·x of the four tokens that a thread works on.
template <class T>
struct Nearest {
  T best[4];
  std::int32_t gate[4];

  __device__ Nearest() {
    for (int i = 0; i < 4; ++i) {
      best[i] = -std::numeric_limits<T>::infinity();
      gate[i] = 0;
    }
  }
  __device__ void offer(int i, T value, std::int32_t g) {
    if (value > best[i] || (value == best[i] && g < gate[i])) {
      best[i] = value;
      gate[i] = g;
    }
  }
  // Of the 16 threads that share these tokens: neighbours in a warp.
  __device__ void write(std::int64_t first, std::int64_t N, std::int32_t* to) {
    for (int i = 0; i < 4; ++i) {
      for (int step = 8; step > 0; step /= 2) {
        const T value = __shfl_xor_sync(kAllLanes, best[i], step);
        const std::int32_t g = __shfl_xor_sync(kAllLanes, gate[i], step);
        offer(i, value, g);
      }
      if (threadIdx.x % 16 == 0 && first + i < N) to[first + i] = gate[i];
    }
  }
};

// 1/|x| of the block's tokens, four threads to a token.
template <class T, int kGates>
__device__ void load_inverse(const GateLogitsFwd& a, std::int64_t n0,
                             LogitShared<T, kGates>& shared) {
  const std::int64_t n = n0 + threadIdx.x / 4;
  const T* x = static_cast<const T*>(a.x) + n * a.gates.R;
  T square = 0;
  for (std::int64_t r = threadIdx.x % 4; n < a.N && r < a.gates.R; r += 4) square += x[r] * x[r];
  square += __shfl_xor_sync(kAllLanes, square, 1);
  square += __shfl_xor_sync(kAllLanes, square, 2);
  if (threadIdx.x % 4 == 0) shared.inverse[threadIdx.x / 4] = inverse_root(square);
}

// to[k][i] = row(i)[r0 + k] where there is one, else 0. A warp copies 8 neighbours of 4 rows: whole
// sectors of memory, and 32 different banks.
template <class T, int kRows, class Row>
__device__ void load_chunk(T (&to)[kDepth<T>][kRows + 4], std::int64_t r0, std::int64_t R,
                           Row&& row) {
  constexpr int kParts = kDepth<T> / 8;
  constexpr int kAtOnce = kLogitThreads / kDepth<T>;
  const int k = static_cast<int>(threadIdx.x) / kWarp % kParts * 8 + lane() % 8;
  const int first = static_cast<int>(threadIdx.x) / kWarp / kParts * 4 + lane() / 8;
#pragma unroll
  for (int i = 0; i < kRows; i += kAtOnce) {
    const T* from = r0 + k < R ? row(first + i) : nullptr;
    to[k][first + i] = from ? from[r0 + k] : T(0);
  }
}

// Adds the products of one chunk of R to the sums of this thread's 4 tokens × kEach gates.
template <bool kPrototypes, class T, int kGates, int kEach>
__device__ void multiply_chunk(const LogitShared<T, kGates>& shared, T (&sum)[4][kEach],
                               T (&cosine)[4][kEach]) {
  const int token = threadIdx.x / 16 * 4;
  const int gate = threadIdx.x % 16 * kEach;
#pragma unroll 16
  for (int k = 0; k < kDepth<T>; ++k) {
    const auto x = load_pack<4>(&shared.chunk.x[k][token]);
    const auto w = load_pack<kEach>(&shared.chunk.w[k][gate]);
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < kEach; ++j) sum[i][j] += x[i] * w[j];
    }
    if constexpr (kPrototypes) {
      const auto p = load_pack<kEach>(&shared.chunk.p[k][gate]);
      for (int i = 0; i < 4; ++i) {
        for (int j = 0; j < kEach; ++j) cosine[i][j] += x[i] * p[j];
      }
    }
  }
}

// shared.scores = s + log m of the gates at order[first, first + count).
template <class T, bool kPrototypes, int kGates>
__device__ void score_tile(const GateLogitsFwd& a, std::int64_t n0, std::int32_t first, int count,
                           LogitShared<T, kGates>& shared, Nearest<T>& nearest) {
  constexpr int kEach = kGates / 16;
  const std::int64_t R = a.gates.R;
  const int t = threadIdx.x;
  __syncthreads();
  if (t < kGates) {
    // Past the tile's gates any gate will do: its scores are not looked at.
    const std::int64_t at = first + max(0, min(t, count - 1));
    const std::int32_t g = a.gates.order[min(at, a.gates.G - 1)];
    shared.gate[t] = g;
    shared.log_mass[t] = vmath::log(static_cast<const T*>(a.gates.mass)[g]);
  }
  T sum[4][kEach] = {};
  T cosine[4][kEach] = {};
  const auto row_of_gate = [&](const void* table) {
    return [&, table](int i) { return static_cast<const T*>(table) + shared.gate[i] * R; };
  };
  for (std::int64_t r0 = 0; r0 < R; r0 += kDepth<T>) {
    __syncthreads();
    load_chunk<T, kTile>(shared.chunk.x, r0, R, [&](int i) {
      return n0 + i < a.N ? static_cast<const T*>(a.x) + (n0 + i) * R : nullptr;
    });
    load_chunk<T, kGates>(shared.chunk.w, r0, R, row_of_gate(a.gates.w));
    if constexpr (kPrototypes) {
      load_chunk<T, kGates>(shared.chunk.p, r0, R, row_of_gate(a.gates.p));
    }
    __syncthreads();
    multiply_chunk<kPrototypes>(shared, sum, cosine);
  }
  __syncthreads();  // the scores lie where the chunk was
  const int token = t / 16 * 4;
  const T lambda = kPrototypes ? *static_cast<const T*>(a.gates.lambda) : T(0);
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < kEach; ++j) {
      const int gate = t % 16 * kEach + j;
      shared.scores[token + i][gate] =
          sum[i][j] + lambda * shared.inverse[token + i] * cosine[i][j] + shared.log_mass[gate];
      if (a.nearest && gate < count) nearest.offer(i, cosine[i][j], shared.gate[gate]);
    }
  }
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

template <class T, bool kPrototypes, int kGates>
__global__ void __launch_bounds__(kLogitThreads)
    gate_logits_kernel(GateLogitsFwd a, std::int64_t heads_of_block) {
  __shared__ LogitShared<T, kGates> shared;
  const std::int64_t n0 = static_cast<std::int64_t>(blockIdx.x) * kTile;
  const std::int64_t stop = min(a.gates.Hr, heads_of_block * (blockIdx.y + 1));
  const std::int32_t* begin = a.gates.head_begin;
  const int t = threadIdx.x;
  T* z = static_cast<T*>(a.z) + n0 * a.gates.Hr;
  Nearest<T> nearest;
  load_inverse(a, n0, shared);
  for (std::int64_t h = heads_of_block * blockIdx.y; h < stop;) {
    const std::int32_t first = begin[h];
    const int heads = __syncthreads_count(h + t < stop && begin[h + t + 1] - first <= kGates);
    if (heads > 0) {
      score_tile<T, kPrototypes, kGates>(a, n0, first, begin[h + heads] - first, shared, nearest);
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
    for (std::int32_t g = first; g < begin[h + 1]; g += kGates) {
      const int count = min(kGates, begin[h + 1] - g);
      score_tile<T, kPrototypes, kGates>(a, n0, g, count, shared, nearest);
      if (t < kTile) add_scores(shared.scores[t], count, top, sum);
    }
    if (t < kTile && n0 + t < a.N) z[t * a.gates.Hr + h] = top + vmath::log(sum);
    ++h;
  }
  if (a.nearest) nearest.write(n0 + t / 16 * 4, a.N, a.nearest);
}

template <class T>
void gate_logits_typed(const GateLogitsFwd& a) {
  // Few tokens: blocks share the heads among them, unless one has to see all gates.
  constexpr std::int64_t kBlocks = 264;
  constexpr std::int64_t kFewestHeads = 8;
  const std::int64_t tiles = ceil_div(a.N, std::int64_t{kTile});
  const std::int64_t parts = a.nearest
                                 ? 1
                                 : std::clamp<std::int64_t>(ceil_div(kBlocks, tiles), 1,
                                                            ceil_div(a.gates.Hr, kFewestHeads));
  const std::int64_t heads = ceil_div(a.gates.Hr, parts);
  const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(ceil_div(a.gates.Hr, heads)));
  const auto run = [&](auto kernel) {
    launch("gate_logits_fwd", kernel, grid, kLogitThreads, 0, a, heads);
  };
  if (a.gates.G <= 32) {
    run(a.gates.p ? gate_logits_kernel<T, true, 32> : gate_logits_kernel<T, false, 32>);
  } else {
    run(a.gates.p ? gate_logits_kernel<T, true, 64> : gate_logits_kernel<T, false, 64>);
  }
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
