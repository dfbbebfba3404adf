// Sums and maxima of tensor/ops/reduce.h on a GPU. Sums are kept in f64 throughout; the order is
// that of the sizes: rows are cut into pieces, the pieces' sums are summed by the same kernel.
#include <cmath>
#include <limits>

#include "cuda/column_sums.cuh"
#include "cuda/kernels.h"
#include "tensor/ops/reduce.h"

namespace proteus::cuda {
namespace {

constexpr std::int64_t kPiece = 32768;  // elements of a row that one group sums

// out[a·pieces + k] = scale · Σ x[a, r]·z[a, r] over the k-th piece of row a; z may be null.
template <class T, class Out, int kThreads>
__global__ void row_sums_kernel(const T* x, const T* z, Out* out, std::int64_t segments,
                                std::int64_t pieces, std::int64_t R, std::int64_t piece,
                                double scale, bool packed) {
  using Groups = RowGroups<kThreads>;
  constexpr int V = kPackOf<T>;
  for (std::int64_t s = Groups::first(); s < segments; s += Groups::step()) {
    const std::int64_t a = quotient(s, pieces);
    const std::int64_t begin = (s - a * pieces) * piece;
    const std::int64_t n = min(piece, R - begin);
    const T* p = x + a * R + begin;
    const T* q = z ? z + a * R + begin : nullptr;
    const std::int64_t packs = packed ? n / V : 0;
    double sum = 0;
    for (std::int64_t i = Groups::lane(); i < packs; i += kThreads) {
      const auto u = load_pack<V>(p + i * V);
      if (q) {
        const auto v = load_pack<V>(q + i * V);
#pragma unroll
        for (int j = 0; j < V; ++j) sum += static_cast<double>(u[j]) * static_cast<double>(v[j]);
      } else {
#pragma unroll
        for (int j = 0; j < V; ++j) sum += static_cast<double>(u[j]);
      }
    }
    for (std::int64_t i = packs * V + Groups::lane(); i < n; i += kThreads) {
      sum += static_cast<double>(p[i]) * (q ? static_cast<double>(q[i]) : 1.0);
    }
    sum = group_sum<kThreads>(sum);
    if (Groups::lane() == 0) out[s] = Out(static_cast<accum_t<Out>>(sum * scale));
  }
}

template <class T, class Out>
void row_sums(const T* x, const T* z, Out* out, std::int64_t A, std::int64_t R, std::int64_t pieces,
              double scale) {
  constexpr int V = kPackOf<T>;
  const std::int64_t piece = pieces == 1 ? R : kPiece;
  const bool packed = can_pack<T, V>(x, z) && (A == 1 || R % V == 0);
  dispatch_row_threads(piece, [&](auto threads) {
    constexpr int kThreads = decltype(threads)::value;
    using Groups = RowGroups<kThreads>;
    launch("sum_fwd", row_sums_kernel<T, Out, kThreads>, Groups::blocks(A * pieces),
           Groups::kBlockThreads, 0, x, z, out, A * pieces, pieces, R, piece, scale, packed);
  });
}

template <class T, class Out>
void sum_rows(const SumFwd& s) {
  const T* x = static_cast<const T*>(s.x);
  const T* z = static_cast<const T*>(s.z);
  Out* y = static_cast<Out*>(s.y);
  const std::int64_t pieces = ceil_div(s.R, kPiece);
  if (pieces == 1) return row_sums(x, z, y, s.A, s.R, 1, s.scale);
  const Storage memory = scratch(static_cast<std::size_t>(s.A * pieces) * sizeof(double));
  double* partial = static_cast<double*>(memory.data());
  row_sums(x, z, partial, s.A, s.R, pieces, 1);
  row_sums(static_cast<const double*>(partial), static_cast<const double*>(nullptr), y, s.A, pieces,
           1, s.scale);
}

template <class T>
struct ProductTerm {
  const T* x;
  const T* z;
  std::int64_t R, C;

  __device__ void operator()(std::int64_t a, std::int64_t r, std::int64_t c,
                             double (&add)[1]) const {
    const std::int64_t at = (a * R + r) * C + c;
    add[0] = static_cast<double>(x[at]) * (z ? static_cast<double>(z[at]) : 1.0);
  }
};

template <class Out>
struct StoreScaled {
  Out* y;
  std::int64_t C;
  double scale;

  __device__ void operator()(std::int64_t a, std::int64_t, std::int64_t c,
                             const double (&sum)[1]) const {
    y[a * C + c] = Out(static_cast<accum_t<Out>>(sum[0] * scale));
  }
};

void sum_fwd_cuda(const SumFwd& s) {
  if (s.A * s.R * s.C == 0) return;
  dispatch_float(s.x_dtype, "sum_fwd", [&](auto in) {
    using T = typename decltype(in)::type;
    dispatch_float(s.y_dtype, "sum_fwd", [&](auto out) {
      using Out = typename decltype(out)::type;
      if constexpr (std::is_same_v<accum_t<T>, accum_t<Out>>) {
        if (s.C == 1) return sum_rows<T, Out>(s);
        column_sums<double, 1>(
            "sum_fwd", s.A, s.R, s.C,
            ProductTerm<T>{static_cast<const T*>(s.x), static_cast<const T*>(s.z), s.R, s.C},
            StoreScaled<Out>{static_cast<Out*>(s.y), s.C, s.scale});
      } else {
        throw_dtype("sum_fwd", s.y_dtype, name_of(s.x_dtype));
      }
    });
  });
}

// The largest value and its first position; NaN is larger than everything.
template <class A>
struct Best {
  A value;
  std::int64_t at;
};

template <class A>
__device__ bool beats(const Best<A>& a, const Best<A>& b) {
  const bool a_nan = a.value != a.value;
  const bool b_nan = b.value != b.value;
  if (a_nan || b_nan) return a_nan && (!b_nan || a.at < b.at);
  return a.value > b.value || (a.value == b.value && a.at < b.at);
}

template <class A>
__device__ Best<A> warp_best(Best<A> best) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const Best<A> other{__shfl_xor_sync(kAllLanes, best.value, offset),
                        __shfl_xor_sync(kAllLanes, best.at, offset)};
    if (beats(other, best)) best = other;
  }
  return best;
}

template <class A, int kThreads>
__device__ Best<A> group_best(Best<A> best, const Best<A>& nothing) {
  best = warp_best(best);
  if constexpr (kThreads > kWarp) {
    constexpr int kWarps = kThreads / kWarp;
    __shared__ Best<A> partial[kWarps];
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    if (lane == 0) partial[threadIdx.x / kWarp] = best;
    __syncthreads();
    best = warp_best(lane < kWarps ? partial[lane] : nothing);
    __syncthreads();  // the next row writes `partial`
  }
  return best;
}

template <class T, int kThreads>
__global__ void max_kernel(const T* x, T* y, std::int32_t* index, std::int64_t rows,
                           std::int64_t R) {
  using A = accum_t<T>;
  using Groups = RowGroups<kThreads>;
  // Loses against every element, −∞ included, because it comes after them.
  const Best<A> nothing{-std::numeric_limits<A>::infinity(), R};
  for (std::int64_t a = Groups::first(); a < rows; a += Groups::step()) {
    Best<A> best = nothing;
    for (std::int64_t r = Groups::lane(); r < R; r += kThreads) {
      const Best<A> now{A(x[a * R + r]), r};
      if (beats(now, best)) best = now;
    }
    best = group_best<A, kThreads>(best, nothing);
    if (Groups::lane() == 0) {
      y[a] = x[a * R + best.at];
      index[a] = static_cast<std::int32_t>(best.at);
    }
  }
}

template <class T>
__global__ void max_bwd_kernel(const T* dy, const std::int32_t* index, T* dx, std::int64_t n,
                               std::int64_t R) {
  for (std::int64_t i = first_unit(); i < n; i += unit_step()) {
    const std::int64_t a = quotient(i, R);
    dx[i] = i - a * R == index[a] ? dy[a] : T(accum_t<T>(0));
  }
}

void max_fwd_cuda(const MaxFwd& m) {
  if (m.A == 0) return;
  dispatch_float(m.dtype, "max_fwd", [&](auto tag) {
    using T = typename decltype(tag)::type;
    dispatch_row_threads(m.R, [&](auto threads) {
      constexpr int kThreads = decltype(threads)::value;
      using Groups = RowGroups<kThreads>;
      launch("max_fwd", max_kernel<T, kThreads>, Groups::blocks(m.A), Groups::kBlockThreads, 0,
             static_cast<const T*>(m.x), static_cast<T*>(m.y), m.index, m.A, m.R);
    });
  });
}

void max_bwd_cuda(const MaxBwd& m) {
  if (m.A * m.R == 0) return;
  dispatch_float(m.dtype, "max_bwd", [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch("max_bwd", max_bwd_kernel<T>, blocks_for(m.A * m.R), kBlock, 0,
           static_cast<const T*>(m.dy), m.index, static_cast<T*>(m.dx), m.A * m.R, m.R);
  });
}

}  // namespace

void install_reduce_kernels() {
  sum_fwd.install(DeviceType::cuda, sum_fwd_cuda);
  max_fwd.install(DeviceType::cuda, max_fwd_cuda);
  max_bwd.install(DeviceType::cuda, max_bwd_cuda);
}

}  // namespace proteus::cuda
