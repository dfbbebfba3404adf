// Routing of packed rows on a GPU: their logits, the gradients of these, and what prototypes learn
// from them (tensor/ops/routing.h has the formulas). Sums run in a fixed order: what a token or a
// row gets depends on itself alone, and sums over rows are cut by sizes that the host knows.
#include <algorithm>
#include <limits>

#include "cuda/gate_rows.h"
#include "cuda/rows.cuh"
#include "tensor/vmath.h"

namespace proteus::cuda {
namespace {

constexpr int kTokenLanes = 8;  // that share a token: a quarter of a warp

/// The lanes of this lane's token.
__device__ inline unsigned token_lanes() {
  return ((1u << kTokenLanes) - 1) << (lane() / kTokenLanes * kTokenLanes);
}

/// The value of the lane that has slot `slot` of the token.
template <class V>
__device__ V of_slot(V value, int slot) {
  return __shfl_sync(token_lanes(), value, slot, kTokenLanes);
}

/// Σ over the lanes of a token; every one of them gets it.
template <class T>
__device__ T token_sum(T value) {
  const unsigned lanes = token_lanes();
#pragma unroll
  for (int step = kTokenLanes / 2; step > 0; step /= 2)
    value += __shfl_xor_sync(lanes, value, step);
  return value;
}

/// x̃ of a token and λ/|x̃|: what its scores are made of, a lane's part. Up to kHeld packs of a lane
/// stay in registers; kHeld = 0 reads them again each time.
template <class T, int kPack, int kHeld>
class TokenScores {
 public:
  __device__ TokenScores(const GateTable& gates, const void* x, std::int64_t n)
      : gates_(gates), x_(static_cast<const T*>(x) + n * gates.R) {
    if constexpr (kHeld > 0) {
#pragma unroll
      for (int c = 0; c < kHeld; ++c) {
        if (column(c) < gates.R) held_[c] = load_pack<kPack>(x_ + column(c));
      }
    }
    if (!gates.p) return;
    const T square = token_sum(dot([&](std::int64_t, const auto& own) { return own; }));
    scale_ = *static_cast<const T*>(gates.lambda) * inverse_root(square);
  }
  /// Of s of a gate; its sum over the token's lanes is s.
  __device__ T part(std::int64_t gate) const {
    const auto row = [&](const void* table) {
      return [from = static_cast<const T*>(table) + gate * gates_.R](std::int64_t r, const auto&) {
        return load_pack<kPack>(from + r);
      };
    };
    T s = dot(row(gates_.w));
    if (gates_.p) s += scale_ * dot(row(gates_.p));
    return s;
  }

 private:
  __device__ static std::int64_t column(int c) {
    return (c * kTokenLanes + lane() % kTokenLanes) * kPack;
  }
  /// x·y, where other(r, pack of x) is the pack of y at r.
  template <class Other>
  __device__ T dot(Other&& other) const {
    T sum = 0;
    const auto add = [&](std::int64_t r, const Pack<T, kPack>& own) {
      const Pack<T, kPack> y = other(r, own);
#pragma unroll
      for (int i = 0; i < kPack; ++i) sum += own[i] * y[i];
    };
    if constexpr (kHeld > 0) {
#pragma unroll
      for (int c = 0; c < kHeld; ++c) {
        if (column(c) < gates_.R) add(column(c), held_[c]);
      }
    } else {
      for (std::int64_t r = column(0); r < gates_.R; r += kTokenLanes * kPack) {
        add(r, load_pack<kPack>(x_ + r));
      }
    }
    return sum;
  }

  const GateTable& gates_;
  const T* x_;
  T scale_ = 0;
  Pack<T, kPack> held_[kHeld > 0 ? kHeld : 1];
};

// z and shares of one row. Every lane of its token knows all scores as they come; gate i's share is
// kept by lane i mod kTokenLanes.
template <class T, class Scores>
__device__ void row_logits(const GateRowsFwd& a, const Scores& scores, std::int64_t row,
                           std::int32_t begin, int count) {
  const std::int32_t* order = a.gates.order + begin;
  const T* mass = static_cast<const T*>(a.gates.mass);
  T* share = static_cast<T*>(a.share) + row * a.width;
  const int own = lane() % kTokenLanes;
  T top = -std::numeric_limits<T>::max();
  for (int i = 0; i < count; ++i) {
    const T s = token_sum(scores.part(order[i]));
    if (i % kTokenLanes == own) share[i] = s;
    top = max(top, s);
  }
  T sum = 0;
  for (std::int64_t i = own; i < a.width; i += kTokenLanes) {
    share[i] = i < count ? mass[order[i]] * vmath::exp(share[i] - top) : T(0);
    sum += share[i];
  }
  sum = token_sum(sum);
  for (int i = own; i < count; i += kTokenLanes) share[i] /= sum;
  if (own == 0) static_cast<T*>(a.z)[row] = top + vmath::log(sum);
}

constexpr int kRowsAtOnce = 4;  // of a token, whose gates are read together

// The rows of heads with one gate each, of up to kTokenLanes slots: `row` and `begin` are those of
// this lane's slot.
template <class T, class Scores>
__device__ void single_gates(const GateRowsFwd& a, const Scores& scores, int slots,
                             std::int64_t row, std::int32_t begin) {
  const int own = lane() % kTokenLanes;
  const std::int32_t gate = row >= 0 ? a.gates.order[begin] : 0;
  T mine = 0;
  for (int j0 = 0; j0 < slots; j0 += kRowsAtOnce) {
    T s[kRowsAtOnce];
#pragma unroll
    for (int j = 0; j < kRowsAtOnce; ++j) s[j] = scores.part(of_slot(gate, j0 + j));
#pragma unroll
    for (int j = 0; j < kRowsAtOnce; ++j) {
      const T sum = token_sum(s[j]);
      if (own == j0 + j) mine = sum;
    }
  }
  if (row < 0) return;
  static_cast<T*>(a.z)[row] = mine + vmath::log(static_cast<const T*>(a.gates.mass)[gate]);
  static_cast<T*>(a.share)[row] = 1;
}

// What is the same in all lanes of a token is read by one of them each, kTokenLanes slots at once.
template <class T, int kPack, int kHeld>
__global__ void gate_rows_kernel(GateRowsFwd a) {
  const std::int64_t n = first_unit() / kTokenLanes;
  if (n >= a.N) return;
  const TokenScores<T, kPack, kHeld> scores(a.gates, a.x, n);
  for (std::int64_t j0 = 0; j0 < a.slots; j0 += kTokenLanes) {
    const int slots = static_cast<int>(min(a.slots - j0, std::int64_t{kTokenLanes}));
    const int own = lane() % kTokenLanes;
    const std::int64_t at = n * a.slots + j0 + own;
    const std::int32_t row = own < slots ? a.row_of[at] : -1;
    const std::int32_t head = row >= 0 ? a.heads[at] : 0;
    const std::int32_t begin = a.gates.head_begin[head];
    if (a.width == 1) {
      single_gates<T>(a, scores, slots, row, begin);
      continue;
    }
    const int count = a.gates.head_begin[head + 1] - begin;
    for (int j = 0; j < slots; ++j) {
      const std::int32_t row_of_slot = of_slot(row, j);
      const std::int32_t first = of_slot(begin, j);
      const int gates = of_slot(count, j);
      if (row_of_slot >= 0) row_logits<T>(a, scores, row_of_slot, first, gates);
    }
  }
}

template <class T>
void gate_rows_typed(const GateRowsFwd& a) {
  constexpr int kPack = kPackOf<T>;
  constexpr int kHeld = 64 / kTokenLanes / kPack;  // for the usual routing width
  const auto run = [&](auto kernel) {
    launch("gate_rows_fwd", kernel, thread_blocks(a.N * kTokenLanes), kBlock, 0, a);
  };
  const bool packs = a.gates.R % kPack == 0 && can_pack<T, kPack>(static_cast<const T*>(a.x),
                                                                  static_cast<const T*>(a.gates.w),
                                                                  static_cast<const T*>(a.gates.p));
  if (!packs) return run(gate_rows_kernel<T, 1, 0>);
  a.gates.R <= kHeld* kTokenLanes* kPack ? run(gate_rows_kernel<T, kPack, kHeld>)
                                         : run(gate_rows_kernel<T, kPack, 0>);
}

constexpr int kTokensOfWarp = 8;
constexpr int kTokensOfBlock = kTokensOfWarp * kBlock / kWarp;

/// Calls fn(gate, ds) for the gates of a token's heads, in order, in all lanes of its warp
/// together. What is the same in all lanes is read by one of them each, all slots at once.
template <class T, class F>
__device__ void each_slope(const GateRowsBwd& a, std::int64_t n, F&& fn) {
  const T* share = static_cast<const T*>(a.share);
  for (std::int64_t j0 = 0; j0 < a.slots; j0 += kWarp) {
    const std::int64_t j = n * a.slots + j0 + lane();
    const std::int64_t row = j0 + lane() < a.slots ? a.row_of[j] : -1;
    std::int32_t begin = 0;
    int count = 0;
    T dz = 0;
    if (row >= 0) {
      begin = a.gates.head_begin[a.heads[j]];
      count = a.gates.head_begin[a.heads[j] + 1] - begin;
      dz = static_cast<const T*>(a.dz)[row];
    }
    const int slots = static_cast<int>(min(a.slots - j0, std::int64_t{kWarp}));
    for (int slot = 0; slot < slots; ++slot) {
      const std::int64_t slot_row = __shfl_sync(kAllLanes, row, slot);
      if (slot_row < 0) continue;
      const std::int32_t first = __shfl_sync(kAllLanes, begin, slot);
      const int gates = __shfl_sync(kAllLanes, count, slot);
      const T slope = __shfl_sync(kAllLanes, dz, slot);
      for (int i = 0; i < gates; ++i) {
        fn(a.gates.order[first + i], slope * share[slot_row * a.width + i]);
      }
    }
  }
}

/// u = Σ ds·w and v = Σ ds·p over the gates of a token's heads, column c·32 + lane of both. Up to
/// kHeld columns of a lane stay in registers; kHeld = 0 works them out each time.
template <class T, int kHeld>
class Slopes {
 public:
  __device__ Slopes(const GateRowsBwd& a, std::int64_t n) : a_(a), n_(n) {
    if constexpr (kHeld > 0) {
      each_slope<T>(a, n, [&](std::int64_t gate, T ds) {
#pragma unroll
        for (int c = 0; c < kHeld; ++c) add(gate, ds, c * kWarp + lane(), u_[c], v_[c]);
      });
    }
  }

  /// fn(column, u, v) for this lane's columns.
  template <class F>
  __device__ void each(F&& fn) const {
    if constexpr (kHeld > 0) {
#pragma unroll
      for (int c = 0; c < kHeld; ++c) {
        const std::int64_t r = c * kWarp + lane();
        if (r < a_.gates.R) fn(r, u_[c], v_[c]);
      }
    } else {
      for (std::int64_t r0 = 0; r0 < a_.gates.R; r0 += kWarp) {
        const std::int64_t r = r0 + lane();
        T u = 0;
        T v = 0;
        each_slope<T>(a_, n_, [&](std::int64_t gate, T ds) { add(gate, ds, r, u, v); });
        if (r < a_.gates.R) fn(r, u, v);
      }
    }
  }

 private:
  __device__ void add(std::int64_t gate, T ds, std::int64_t r, T& u, T& v) const {
    if (r >= a_.gates.R) return;
    const std::int64_t at = gate * a_.gates.R + r;
    u += ds * static_cast<const T*>(a_.gates.w)[at];
    if (a_.gates.p) v += ds * static_cast<const T*>(a_.gates.p)[at];
  }

  const GateRowsBwd& a_;
  std::int64_t n_;
  T u_[kHeld > 0 ? kHeld : 1] = {};
  T v_[kHeld > 0 ? kHeld : 1] = {};
};

// dx of a warp's tokens; dlambda [blocks]: what each block adds to dλ.
template <class T, int kHeld>
__global__ void gate_tokens_kernel(GateRowsBwd a, T* dlambda) {
  __shared__ T sums[kBlock / kWarp];
  const std::int64_t R = a.gates.R;
  const T lambda = a.gates.p ? *static_cast<const T*>(a.gates.lambda) : T(0);
  T total = 0;
  for (int i = 0; i < kTokensOfWarp; ++i) {
    const std::int64_t n = warp_unit() * kTokensOfWarp + i;
    if (n >= a.N) break;
    const T* x = static_cast<const T*>(a.x) + n * R;
    T* dx = static_cast<T*>(a.dx) + n * R;
    const Slopes<T, kHeld> slopes(a, n);
    T along = 0;  // x̂·v
    T inverse = 0;
    if (a.gates.p) {
      inverse = inverse_root(warp_dot(x, x, R));
      slopes.each([&](std::int64_t r, T, T v) { along += x[r] * v; });
      along = inverse * warp_sum(along);
    }
    const T scale = inverse * lambda;
    slopes.each(
        [&](std::int64_t r, T u, T v) { dx[r] = u + scale * (v - x[r] * inverse * along); });
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
  const auto run = [&](auto kernel) {
    launch("gate_rows_bwd", kernel, static_cast<unsigned>(blocks), kBlock, 0, a, sums);
  };
  if (a.gates.R <= 2 * kWarp) {
    run(gate_tokens_kernel<T, 2>);
  } else if (a.gates.R <= 8 * kWarp) {
    run(gate_tokens_kernel<T, 8>);
  } else {
    run(gate_tokens_kernel<T, 0>);
  }
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
#pragma unroll 4
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

}  // namespace

void gate_rows_forward(const GateRowsFwd& a) {
  a.dtype == DType::f64 ? gate_rows_typed<double>(a) : gate_rows_typed<float>(a);
}

void gate_rows_backward(const GateRowsBwd& a) {
  a.dtype == DType::f64 ? gate_rows_bwd_typed<double>(a) : gate_rows_bwd_typed<float>(a);
}

void prototype_sums(const PrototypeStats& a) {
  a.dtype == DType::f64 ? prototype_stats_typed<double>(a) : prototype_stats_typed<float>(a);
}

}  // namespace proteus::cuda
