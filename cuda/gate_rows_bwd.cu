// Gradients of the logits of packed rows on a GPU, and what prototypes learn from those rows
// (tensor/ops/routing.h has the formulas). Sums run in a fixed order: what a token gets depends on
// itself alone, and sums over rows are cut by sizes that the host knows.
#include <algorithm>

#include "cuda/gate_rows.h"
#include "cuda/gate_tokens.cuh"

namespace proteus::cuda {
namespace {

constexpr int kTokensOfBlock = 4 * kBlock / kTokenLanes;  // four for a group of lanes

/// Calls fn(gate, ds) for the gates of a token's heads, in order, in all lanes of the token
/// together. What is the same in all of them is read by one each, kTokenLanes slots at once.
template <class T, class F>
__device__ void each_slope(const GateRowsBwd& a, std::int64_t n, F&& fn) {
  const T* share = static_cast<const T*>(a.share);
  for (std::int64_t j0 = 0; j0 < a.slots; j0 += kTokenLanes) {
    const std::int64_t own = j0 + lane() % kTokenLanes;
    const std::int64_t row = own < a.slots ? a.row_of[n * a.slots + own] : -1;
    std::int32_t begin = 0;
    int count = 0;
    std::int32_t gate = 0;
    T dz = 0;
    T ds = 0;
    if (row >= 0) {
      const std::int32_t head = a.heads[n * a.slots + own];
      begin = a.gates.head_begin[head];
      count = a.gates.head_begin[head + 1] - begin;
      gate = a.gates.order[begin];
      dz = static_cast<const T*>(a.dz)[row];
      ds = dz * share[row * a.width];
    }
    const int slots = static_cast<int>(min(a.slots - j0, std::int64_t{kTokenLanes}));
    for (int slot = 0; slot < slots; ++slot) {
      const int gates = of_slot(count, slot);
      if (gates == 0) continue;
      fn(of_slot(gate, slot), of_slot(ds, slot));
      if (gates == 1) continue;
      const std::int64_t slot_row = of_slot(row, slot);
      const std::int32_t first = of_slot(begin, slot);
      const T slope = of_slot(dz, slot);
      for (int i = 1; i < gates; ++i) {
        fn(a.gates.order[first + i], slope * share[slot_row * a.width + i]);
      }
    }
  }
}

/// u = Σ ds·w and v = Σ ds·p over the gates of a token's heads, the columns of one block of kHeld
/// packs per lane.
template <class T, int kPack, int kHeld>
class Slopes {
 public:
  static constexpr std::int64_t kColumns = std::int64_t{kHeld} * kTokenLanes * kPack;

  __device__ Slopes(const GateRowsBwd& a, std::int64_t n, std::int64_t block) : a_(a), r0_(block) {
    each_slope<T>(a, n, [&](std::int64_t gate, T ds) {
      const auto add = [&](const void* table, Pack<T, kPack>(&sum)[kHeld]) {
        const T* row = static_cast<const T*>(table) + gate * a.gates.R;
#pragma unroll
        for (int c = 0; c < kHeld; ++c) {
          if (column(c) >= a.gates.R) continue;
          const auto y = load_pack<kPack>(row + column(c));
#pragma unroll
          for (int i = 0; i < kPack; ++i) sum[c][i] += ds * y[i];
        }
      };
      add(a.gates.w, u_);
      if (a.gates.p) add(a.gates.p, v_);
    });
  }
  /// fn(first column, pack of u, pack of v).
  template <class F>
  __device__ void each(F&& fn) const {
#pragma unroll
    for (int c = 0; c < kHeld; ++c) {
      if (column(c) < a_.gates.R) fn(column(c), u_[c], v_[c]);
    }
  }

 private:
  __device__ std::int64_t column(int c) const {
    return r0_ + (c * kTokenLanes + lane() % kTokenLanes) * kPack;
  }

  const GateRowsBwd& a_;
  std::int64_t r0_;
  Pack<T, kPack> u_[kHeld] = {};
  Pack<T, kPack> v_[kHeld] = {};
};

/// dx of a token; returns x̂·v, what it adds to dλ. Rows wider than a block of columns are gone
/// through twice, as x̂·v of all of them comes first.
template <class T, int kPack, int kHeld>
__device__ T token_gradient(const GateRowsBwd& a, std::int64_t n, T lambda) {
  using S = Slopes<T, kPack, kHeld>;
  using Columns = Pack<T, kPack>;
  const std::int64_t R = a.gates.R;
  const T* x = static_cast<const T*>(a.x) + n * R;
  T* dx = static_cast<T*>(a.dx) + n * R;
  T square = 0;
  T along = 0;
  const auto measure = [&](std::int64_t r, const Columns&, const Columns& v) {
    const auto own = load_pack<kPack>(x + r);
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      square += own[i] * own[i];
      along += own[i] * v[i];
    }
  };
  T inverse = 0;
  const auto write = [&](std::int64_t r, const Columns& u, const Columns& v) {
    const T scale = inverse * lambda;
    const auto own = load_pack<kPack>(x + r);
    Columns out;
#pragma unroll
    for (int i = 0; i < kPack; ++i) out[i] = u[i] + scale * (v[i] - own[i] * inverse * along);
    store_pack(dx + r, out);
  };
  const S first(a, n, 0);
  if (a.gates.p) {
    first.each(measure);
    for (std::int64_t r0 = S::kColumns; r0 < R; r0 += S::kColumns) S(a, n, r0).each(measure);
    inverse = inverse_root(token_sum(square));
    along = inverse * token_sum(along);
  }
  first.each(write);
  for (std::int64_t r0 = S::kColumns; r0 < R; r0 += S::kColumns) S(a, n, r0).each(write);
  return along;
}

// dx of a block's tokens; dlambda [blocks]: what each block adds to dλ.
template <class T, int kPack, int kHeld>
__global__ void gate_tokens_kernel(GateRowsBwd a, T* dlambda) {
  constexpr int kGroups = kBlock / kTokenLanes;
  const T lambda = a.gates.p ? *static_cast<const T*>(a.gates.lambda) : T(0);
  const int group = static_cast<int>(threadIdx.x) / kTokenLanes;
  T total = 0;
  for (int i = group; i < kTokensOfBlock; i += kGroups) {
    const std::int64_t n = std::int64_t{blockIdx.x} * kTokensOfBlock + i;
    if (n < a.N) total += token_gradient<T, kPack, kHeld>(a, n, lambda);
  }
  if (!dlambda) return;
  const T sum = group_sum<kBlock>(lane() % kTokenLanes == 0 ? total : T(0));
  if (threadIdx.x == 0) dlambda[blockIdx.x] = sum;
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
  constexpr int kPack = kPackOf<T>;
  constexpr int kHeld = 64 / kTokenLanes / kPack;  // the usual routing width at once
  const std::int64_t blocks = ceil_div(a.N, kTokensOfBlock);
  const Storage parts = scratch(static_cast<std::size_t>(blocks) * sizeof(T));
  T* sums = a.dlambda ? static_cast<T*>(parts.data()) : nullptr;
  const bool packs =
      a.gates.R % kPack == 0 &&
      can_pack<T, kPack>(static_cast<const T*>(a.x), static_cast<const T*>(a.dx),
                         static_cast<const T*>(a.gates.w), static_cast<const T*>(a.gates.p));
  launch("gate_rows_bwd",
         packs ? gate_tokens_kernel<T, kPack, kHeld> : gate_tokens_kernel<T, 1, kHeld * kPack>,
         static_cast<unsigned>(blocks), kBlock, 0, a, sums);
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

constexpr int kColumnsOfLane = 2;
constexpr int kColumns = kWarp * kColumnsOfLane;

/// Sums of a warp over its rows: kGates gates from number `first` of the head's on, columns
/// column + c·32 of a lane.
template <class T, int kGates>
struct WarpSums {
  T sum[kGates][kColumnsOfLane] = {};
  T count[kGates] = {};  // of this lane's rows

  /// 32 rows from `row` on, of those before `end`: a lane reads what is known of one of them, then
  /// all lanes go through their tokens together.
  __device__ void add(const GateSums<T>& s, std::int64_t row, std::int64_t end, int first,
                      int gates, std::int64_t column) {
    const bool inside = row + lane() < end;
    const std::int64_t own = inside ? row + lane() : end - 1;
    const std::int32_t token = s.token[own];
    const T weight = !inside ? T(0) : s.weight ? s.weight[own] : T(1);
    T scale[kGates];
#pragma unroll
    for (int i = 0; i < kGates; ++i) {
      scale[i] = first + i < gates ? weight * s.share[own * s.width + first + i] : T(0);
      count[i] += scale[i];
    }
    const int rows = static_cast<int>(min(end - row, std::int64_t{kWarp}));
#pragma unroll 8
    for (int j = 0; j < rows; ++j) {
      const T* x = s.x + __shfl_sync(kAllLanes, token, j) * s.gates.R;
      T value[kColumnsOfLane];
#pragma unroll
      for (int c = 0; c < kColumnsOfLane; ++c) {
        const std::int64_t r = column + c * kWarp;
        value[c] = r < s.gates.R ? x[r] : T(0);
      }
#pragma unroll
      for (int i = 0; i < kGates; ++i) {
        const T share = __shfl_sync(kAllLanes, scale[i], j);
#pragma unroll
        for (int c = 0; c < kColumnsOfLane; ++c) sum[i][c] += share * value[c];
      }
    }
  }
};

// parts [gridDim.y, G, R + 1]: a gate's weighted sum, then its count. kGates at a time.
template <class T, int kGates>
__global__ void gate_sums_kernel(GateSums<T> s, T* parts) {
  constexpr int kWarps = kBlock / kWarp;
  __shared__ T shared[kWarps][kGates][kColumns + 1];
  const std::int64_t R = s.gates.R;
  const std::int64_t h = blockIdx.x;
  const std::int64_t begin = s.offsets[h * s.stride];
  const std::int64_t end = s.offsets[(h + 1) * s.stride];
  const std::int64_t each = ceil_div(end - begin, std::int64_t{gridDim.y});
  const std::int64_t from = begin + each * blockIdx.y;
  const std::int64_t to = min(end, from + each);
  const std::int32_t* order = s.gates.order + s.gates.head_begin[h];
  const int gates = s.gates.head_begin[h + 1] - s.gates.head_begin[h];
  const int warp = warp_of_block();
  T* out = parts + blockIdx.y * s.gates.G * (R + 1);
  for (int i0 = 0; i0 < gates; i0 += kGates) {
    for (std::int64_t r0 = 0; r0 < R; r0 += kColumns) {
      WarpSums<T, kGates> sums;
      for (std::int64_t row = from + warp * kWarp; row < to; row += kBlock) {
        sums.add(s, row, to, i0, gates, r0 + lane());
      }
      for (int i = 0; i < kGates; ++i) {
        for (int c = 0; c < kColumnsOfLane; ++c) {
          shared[warp][i][c * kWarp + lane()] = sums.sum[i][c];
        }
        const T count = warp_sum(sums.count[i]);
        if (lane() == 0) shared[warp][i][kColumns] = count;
      }
      __syncthreads();
      for (int at = threadIdx.x; at < kGates * (kColumns + 1); at += kBlock) {
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
  // Parts of about a block's rows, as long as that leaves no more than 64 of a head.
  const std::int64_t parts =
      std::clamp<std::int64_t>(ceil_div(rows, s.gates.Hr * std::int64_t{kBlock}), 1, 64);
  const std::int64_t values = s.gates.G * (s.gates.R + 1);
  const Storage partial = scratch(static_cast<std::size_t>(parts * values) * sizeof(T));
  T* partials = static_cast<T*>(partial.data());
  const dim3 grid(static_cast<unsigned>(s.gates.Hr), static_cast<unsigned>(parts));
  constexpr int kGates = 4;
  launch(name, s.width == 1 ? gate_sums_kernel<T, 1> : gate_sums_kernel<T, kGates>, grid, kBlock, 0,
         s, partials);
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

void gate_rows_backward(const GateRowsBwd& a) {
  a.dtype == DType::f64 ? gate_rows_bwd_typed<double>(a) : gate_rows_bwd_typed<float>(a);
}

void prototype_sums(const PrototypeStats& a) {
  a.dtype == DType::f64 ? prototype_stats_typed<double>(a) : prototype_stats_typed<float>(a);
}

}  // namespace proteus::cuda
