// Routing on a GPU (tensor/ops/routing.h has the formulas). Sums run in a fixed order: what a token
// or a row gets depends on itself alone, and sums over rows are cut by sizes that the host knows.
#include <algorithm>
#include <limits>

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
constexpr int kTile = 64;
constexpr int kDepth = 16;
constexpr int kLogitThreads = 256;

template <class T>
struct LogitShared {
  struct Chunk {
    T x[kDepth][kTile + 4];
    T w[kDepth][kTile + 4];
    T p[kDepth][kTile + 4];
  };
  union {
    Chunk chunk;
    T scores[kTile][kTile + 1];  // [token][gate]
  };
  T inverse[kTile];
  T log_mass[kTile];
  std::int32_t gate[kTile];
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
template <class T>
__device__ void load_inverse(const GateLogitsFwd& a, std::int64_t n0, LogitShared<T>& shared) {
  const std::int64_t n = n0 + threadIdx.x / 4;
  const T* x = static_cast<const T*>(a.x) + n * a.gates.R;
  T square = 0;
  for (std::int64_t r = threadIdx.x % 4; n < a.N && r < a.gates.R; r += 4) square += x[r] * x[r];
  square += __shfl_xor_sync(kAllLanes, square, 1);
  square += __shfl_xor_sync(kAllLanes, square, 2);
  if (threadIdx.x % 4 == 0) shared.inverse[threadIdx.x / 4] = inverse_root(square);
}

// Adds the products of one chunk of R to the sums of this thread's 4 tokens × 4 gates.
template <class T, bool kPrototypes>
__device__ void multiply_chunk(const LogitShared<T>& shared, T (&sum)[4][4], T (&cosine)[4][4]) {
  const int token = threadIdx.x / 16 * 4;
  const int gate = threadIdx.x % 16 * 4;
#pragma unroll
  for (int k = 0; k < kDepth; ++k) {
    T x[4];
    T w[4];
    load_four(&shared.chunk.x[k][token], x);
    load_four(&shared.chunk.w[k][gate], w);
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < 4; ++j) sum[i][j] += x[i] * w[j];
    }
    if constexpr (kPrototypes) {
      load_four(&shared.chunk.p[k][gate], w);
      for (int i = 0; i < 4; ++i) {
        for (int j = 0; j < 4; ++j) cosine[i][j] += x[i] * w[j];
      }
    }
  }
}

// shared.scores = s + log m of the gates at order[first, first + count).
template <class T, bool kPrototypes>
__device__ void score_tile(const GateLogitsFwd& a, std::int64_t n0, std::int32_t first, int count,
                           LogitShared<T>& shared, Nearest<T>& nearest) {
  const std::int64_t R = a.gates.R;
  const int t = threadIdx.x;
  __syncthreads();
  if (t < kTile) {
    // Past the tile's gates any gate will do: its scores are not looked at.
    const std::int64_t at = first + max(0, min(t, count - 1));
    const std::int32_t g = a.gates.order[min(at, a.gates.G - 1)];
    shared.gate[t] = g;
    shared.log_mass[t] = vmath::log(static_cast<const T*>(a.gates.mass)[g]);
  }
  T sum[4][4] = {};
  T cosine[4][4] = {};
  for (std::int64_t r0 = 0; r0 < R; r0 += kDepth) {
    __syncthreads();
    const int k = t % kDepth;
    for (int m = t / kDepth; m < kTile; m += kLogitThreads / kDepth) {
      const bool real = r0 + k < R;
      const std::int64_t at = shared.gate[m] * R + r0 + k;
      shared.chunk.x[k][m] =
          real && n0 + m < a.N ? static_cast<const T*>(a.x)[(n0 + m) * R + r0 + k] : T(0);
      shared.chunk.w[k][m] = real ? static_cast<const T*>(a.gates.w)[at] : T(0);
      if constexpr (kPrototypes) {
        shared.chunk.p[k][m] = real ? static_cast<const T*>(a.gates.p)[at] : T(0);
      }
    }
    __syncthreads();
    multiply_chunk<T, kPrototypes>(shared, sum, cosine);
  }
  __syncthreads();  // the scores lie where the chunk was
  const int token = t / 16 * 4;
  const T lambda = kPrototypes ? *static_cast<const T*>(a.gates.lambda) : T(0);
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j) {
      const int gate = t % 16 * 4 + j;
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

template <class T, bool kPrototypes>
__global__ void __launch_bounds__(kLogitThreads)
    gate_logits_kernel(GateLogitsFwd a, std::int64_t heads_of_block) {
  __shared__ LogitShared<T> shared;
  const std::int64_t n0 = static_cast<std::int64_t>(blockIdx.x) * kTile;
  const std::int64_t stop = min(a.gates.Hr, heads_of_block * (blockIdx.y + 1));
  const std::int32_t* begin = a.gates.head_begin;
  const int t = threadIdx.x;
  T* z = static_cast<T*>(a.z) + n0 * a.gates.Hr;
  Nearest<T> nearest;
  load_inverse(a, n0, shared);
  for (std::int64_t h = heads_of_block * blockIdx.y; h < stop;) {
    const std::int32_t first = begin[h];
    const int heads = __syncthreads_count(h + t < stop && begin[h + t + 1] - first <= kTile);
    if (heads > 0) {
      score_tile<T, kPrototypes>(a, n0, first, begin[h + heads] - first, shared, nearest);
      for (int i = t; i < kTile * heads; i += kLogitThreads) {
        const int token = i / heads;
        const std::int64_t head = h + i % heads;
        T top = -std::numeric_limits<T>::max();
        T sum = 0;
        add_scores(&shared.scores[token][begin[head] - first], begin[head + 1] - begin[head], top,
                   sum);
        if (n0 + token < a.N) z[token * a.gates.Hr + head] = top + vmath::log(sum);
      }
      h += heads;
      continue;
    }
    T top = -std::numeric_limits<T>::max();
    T sum = 0;
    for (std::int32_t g = first; g < begin[h + 1]; g += kTile) {
      const int count = min(kTile, begin[h + 1] - g);
      score_tile<T, kPrototypes>(a, n0, g, count, shared, nearest);
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
  launch("gate_logits_fwd", a.gates.p ? gate_logits_kernel<T, true> : gate_logits_kernel<T, false>,
         grid, kLogitThreads, 0, a, heads);
}

// z and shares of the packed rows, a warp to a row.
template <class T>
__global__ void gate_rows_kernel(GateRowsFwd a) {
  const std::int64_t row = warp_unit();
  if (row >= a.rows) return;
  const std::int64_t R = a.gates.R;
  const std::int64_t h = part_of(a.offsets, a.stride, a.gates.Hr, row);
  const std::int32_t* order = a.gates.order + a.gates.head_begin[h];
  const int count = a.gates.head_begin[h + 1] - a.gates.head_begin[h];
  const T* x = static_cast<const T*>(a.x) + a.token[row] * R;
  const T* w = static_cast<const T*>(a.gates.w);
  const T* p = static_cast<const T*>(a.gates.p);
  const T* mass = static_cast<const T*>(a.gates.mass);
  T* share = static_cast<T*>(a.share) + row * a.width;
  const T scale =
      p ? *static_cast<const T*>(a.gates.lambda) * inverse_root(warp_dot(x, x, R)) : T(0);
  T top = -std::numeric_limits<T>::max();
  // Gate i's share belongs to lane i mod 32, here and below.
  for (int i = 0; i < count; ++i) {
    T s = warp_dot(w + order[i] * R, x, R);
    if (p) s += scale * warp_dot(p + order[i] * R, x, R);
    if (i % kWarp == lane()) share[i] = s;
    top = max(top, s);
  }
  T sum = 0;
  for (std::int64_t i = lane(); i < a.width; i += kWarp) {
    share[i] = i < count ? mass[order[i]] * vmath::exp(share[i] - top) : T(0);
    sum += share[i];
  }
  sum = warp_sum(sum);
  for (int i = lane(); i < count; i += kWarp) share[i] /= sum;
  if (lane() == 0) static_cast<T*>(a.z)[row] = top + vmath::log(sum);
}

template <class T>
void gate_rows_typed(const GateRowsFwd& a) {
  launch("gate_rows_fwd", gate_rows_kernel<T>, warp_blocks(a.rows), kBlock, 0, a);
}

// u = Σ ds·w and v = Σ ds·p over a token's gates, at this lane's place in [r0, r0 + 32).
template <class T>
__device__ void gate_gradients(const GateRowsBwd& a, std::int64_t n, std::int64_t r, T& u, T& v) {
  const std::int64_t R = a.gates.R;
  u = 0;
  v = 0;
  for (std::int64_t j = n * a.slots; j < (n + 1) * a.slots; ++j) {
    const std::int64_t row = a.row_of[j];
    if (row < 0) continue;
    const std::int32_t begin = a.gates.head_begin[a.heads[j]];
    const std::int32_t end = a.gates.head_begin[a.heads[j] + 1];
    const T dz = static_cast<const T*>(a.dz)[row];
    const T* share = static_cast<const T*>(a.share) + row * a.width;
    for (std::int32_t i = begin; i < end; ++i) {
      const T ds = dz * share[i - begin];
      const std::int64_t at = a.gates.order[i] * R + r;
      if (r < R) {
        u += ds * static_cast<const T*>(a.gates.w)[at];
        if (a.gates.p) v += ds * static_cast<const T*>(a.gates.p)[at];
      }
    }
  }
}

constexpr int kTokensOfWarp = 8;
constexpr int kTokensOfBlock = kTokensOfWarp * kBlock / kWarp;

// dx of a warp's tokens; dlambda [blocks]: what each block adds to dλ.
template <class T>
__global__ void gate_tokens_kernel(GateRowsBwd a, T* dlambda) {
  __shared__ T sums[kBlock / kWarp];
  const std::int64_t R = a.gates.R;
  T total = 0;
  for (int i = 0; i < kTokensOfWarp; ++i) {
    const std::int64_t n = warp_unit() * kTokensOfWarp + i;
    if (n >= a.N) break;
    const T* x = static_cast<const T*>(a.x) + n * R;
    T* dx = static_cast<T*>(a.dx) + n * R;
    T u;
    T v;
    T along = 0;  // x̂·v
    T inverse = 0;
    if (a.gates.p) {
      inverse = inverse_root(warp_dot(x, x, R));
      for (std::int64_t r0 = 0; r0 < R; r0 += kWarp) {
        const std::int64_t r = r0 + lane();
        gate_gradients(a, n, r, u, v);
        if (r < R) along += x[r] * v;
      }
      along = inverse * warp_sum(along);
    }
    const T scale = a.gates.p ? inverse * *static_cast<const T*>(a.gates.lambda) : T(0);
    for (std::int64_t r0 = 0; r0 < R; r0 += kWarp) {
      const std::int64_t r = r0 + lane();
      gate_gradients(a, n, r, u, v);
      if (r < R) dx[r] = u + scale * (v - x[r] * inverse * along);
    }
    total += along;
  }
  if (!dlambda) return;
  if (lane() == 0) sums[threadIdx.x / kWarp] = total;
  __syncthreads();
  if (threadIdx.x != 0) return;
  total = 0;
  for (const T sum : sums) total += sum;
  dlambda[blockIdx.x] = total;
}

template <class T>
__global__ void sum_kernel(const T* values, std::int64_t count, T* out) {
  T sum = 0;
  for (std::int64_t i = threadIdx.x; i < count; i += kBlock) sum += values[i];
  sum = group_sum<kBlock>(sum);
  if (threadIdx.x == 0) *out = sum;
}

template <class T>
void token_gradients(const GateRowsBwd& a) {
  const std::int64_t blocks = ceil_div(a.N, kTokensOfBlock);
  const Storage parts = scratch(static_cast<std::size_t>(blocks) * sizeof(T));
  T* sums = a.dlambda ? static_cast<T*>(parts.data()) : nullptr;
  launch("gate_rows_bwd", gate_tokens_kernel<T>, static_cast<unsigned>(blocks), kBlock, 0, a, sums);
  if (!sums) return;
  launch("gate_rows_bwd", sum_kernel<T>, 1, kBlock, 0, static_cast<const T*>(sums), blocks,
         static_cast<T*>(a.dlambda));
}

// Σ_r c_{r,g}·x_{token r} and Σ_r c_{r,g} over the packed rows of g's head; c = share·weight
// (weight 1 when null). The rows of a head are cut into gridDim.y parts, whose sums are added in
// order by a second kernel.
template <class T>
struct GateSums {
  GateTable gates;
  const T* x;
  const T* share;
  const T* weight;
  const std::int32_t* token;
  const std::int32_t* offsets;
  std::int64_t stride;
  std::int64_t width;
};

constexpr int kGatesAtOnce = 4;
constexpr int kColumnsOfLane = 2;
constexpr int kColumns = kWarp * kColumnsOfLane;

template <class T>
__device__ void add_row(const GateSums<T>& s, std::int64_t row, int i0, int gates,
                        std::int64_t column, T (&sum)[kGatesAtOnce][kColumnsOfLane],
                        T (&count)[kGatesAtOnce]) {
  const T scale = s.weight ? s.weight[row] : T(1);
  const T* x = s.x + s.token[row] * s.gates.R;
  T value[kColumnsOfLane];
  for (int c = 0; c < kColumnsOfLane; ++c) {
    const std::int64_t r = column + c * kWarp;
    value[c] = r < s.gates.R ? x[r] : T(0);
  }
  for (int i = 0; i < kGatesAtOnce; ++i) {
    const T share = i0 + i < gates ? scale * s.share[row * s.width + i0 + i] : T(0);
    count[i] += share;
    for (int c = 0; c < kColumnsOfLane; ++c) sum[i][c] += share * value[c];
  }
}

// parts [gridDim.y, G, R + 1]: a gate's weighted sum, then its count.
template <class T>
__global__ void gate_sums_kernel(GateSums<T> s, T* parts) {
  constexpr int kWarps = kBlock / kWarp;
  __shared__ T shared[kWarps][kGatesAtOnce][kColumns + 1];
  const std::int64_t R = s.gates.R;
  const std::int64_t h = blockIdx.x;
  const std::int64_t begin = s.offsets[h * s.stride];
  const std::int64_t end = s.offsets[(h + 1) * s.stride];
  const std::int64_t each = ceil_div(end - begin, std::int64_t{gridDim.y});
  const std::int64_t from = begin + each * blockIdx.y;
  const std::int64_t to = min(end, from + each);
  const std::int32_t* order = s.gates.order + s.gates.head_begin[h];
  const int gates = s.gates.head_begin[h + 1] - s.gates.head_begin[h];
  const int warp = threadIdx.x / kWarp;
  T* out = parts + blockIdx.y * s.gates.G * (R + 1);
  for (int i0 = 0; i0 < gates; i0 += kGatesAtOnce) {
    for (std::int64_t r0 = 0; r0 < R; r0 += kColumns) {
      T sum[kGatesAtOnce][kColumnsOfLane] = {};
      T count[kGatesAtOnce] = {};
#pragma unroll 2
      for (std::int64_t row = from + warp; row < to; row += kWarps) {
        add_row(s, row, i0, gates, r0 + lane(), sum, count);
      }
      for (int i = 0; i < kGatesAtOnce; ++i) {
        for (int c = 0; c < kColumnsOfLane; ++c) {
          shared[warp][i][c * kWarp + lane()] = sum[i][c];
        }
        if (lane() == 0) shared[warp][i][kColumns] = count[i];
      }
      __syncthreads();
      for (int at = threadIdx.x; at < kGatesAtOnce * (kColumns + 1); at += kBlock) {
        const int i = at / (kColumns + 1);
        const int c = at % (kColumns + 1);
        const std::int64_t r = c == kColumns ? R : r0 + c;
        if (i0 + i >= gates || (c < kColumns && r >= R)) continue;
        T total = 0;
        for (int w = 0; w < kWarps; ++w) total += shared[w][i][c];
        out[order[i0 + i] * (R + 1) + r] = total;
      }
      __syncthreads();
    }
  }
}

template <class T>
__global__ void add_parts_kernel(const T* parts, std::int64_t count, std::int64_t G, std::int64_t R,
                                 T* sums, T* counts) {
  const std::int64_t at = thread_unit();
  if (at >= G * (R + 1)) return;
  T total = 0;
  for (std::int64_t i = 0; i < count; ++i) total += parts[i * G * (R + 1) + at];
  const std::int64_t g = at / (R + 1);
  const std::int64_t r = at % (R + 1);
  if (r < R) {
    sums[g * R + r] = total;
  } else if (counts) {
    counts[g] = total;
  }
}

template <class T>
void gate_sums(const char* name, const GateSums<T>& s, std::int64_t rows, T* sums, T* counts) {
  // Parts of about 512 rows, as long as that leaves no more than 64 of a head.
  const std::int64_t parts =
      std::clamp<std::int64_t>(ceil_div(rows, s.gates.Hr * std::int64_t{512}), 1, 64);
  const std::int64_t values = s.gates.G * (s.gates.R + 1);
  const Storage partial = scratch(static_cast<std::size_t>(parts * values) * sizeof(T));
  T* partials = static_cast<T*>(partial.data());
  const dim3 grid(static_cast<unsigned>(s.gates.Hr), static_cast<unsigned>(parts));
  launch(name, gate_sums_kernel<T>, grid, kBlock, 0, s, partials);
  launch(name, add_parts_kernel<T>, thread_blocks(values), kBlock, 0,
         static_cast<const T*>(partials), parts, s.gates.G, s.gates.R, sums, counts);
}

template <class T>
void gate_rows_bwd_typed(const GateRowsBwd& a) {
  if (a.dx) token_gradients<T>(a);
  if (!a.dw) return;
  gate_sums<T>("gate_rows_bwd",
               {a.gates, static_cast<const T*>(a.x), static_cast<const T*>(a.share),
                static_cast<const T*>(a.dz), a.token, a.offsets, a.stride, a.width},
               a.rows, static_cast<T*>(a.dw), nullptr);
}

template <class T>
void prototype_stats_typed(const PrototypeStats& a) {
  gate_sums<T>("prototype_stats",
               {a.gates, static_cast<const T*>(a.x), static_cast<const T*>(a.share), nullptr,
                a.token, a.offsets, a.stride, a.width},
               a.rows, static_cast<T*>(a.weighted_sum), static_cast<T*>(a.weight_sum));
}

__global__ void key_ranges_kernel(KeyRangesFwd a) {
  const std::int64_t q = thread_unit();
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
  launch("key_ranges_fwd", key_ranges_kernel, thread_blocks(a.queries), kBlock, 0, a);
}

// f64 or f32: routing knows no other dtype.
template <class Args>
void install(Slot<Args>& slot, typename Slot<Args>::Kernel kernel) {
  slot.install(DeviceType::cuda, kernel);
}

}  // namespace

void install_routing_kernels() {
  install(gate_logits_fwd, [](const GateLogitsFwd& a) {
    a.dtype == DType::f64 ? gate_logits_typed<double>(a) : gate_logits_typed<float>(a);
  });
  install(gate_rows_fwd, [](const GateRowsFwd& a) {
    a.dtype == DType::f64 ? gate_rows_typed<double>(a) : gate_rows_typed<float>(a);
  });
  install(gate_rows_bwd, [](const GateRowsBwd& a) {
    a.dtype == DType::f64 ? gate_rows_bwd_typed<double>(a) : gate_rows_bwd_typed<float>(a);
  });
  install(prototype_stats, [](const PrototypeStats& a) {
    a.dtype == DType::f64 ? prototype_stats_typed<double>(a) : prototype_stats_typed<float>(a);
  });
  install(key_ranges_fwd, key_ranges);
}

}  // namespace proteus::cuda
