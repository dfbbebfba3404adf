// The fused forms of tensor/ops/elementwise.h on a GPU: swiglu, scale_rows and open_rows,
// key_shift.
#include "cuda/column_sums.cuh"
#include "cuda/kernels.h"
#include "cuda/map.cuh"
#include "tensor/ops/elementwise.h"
#include "tensor/ops/row_factor.h"
#include "tensor/vmath.h"

namespace proteus::cuda {
namespace {

struct Swiglu {
  template <class A>
  __device__ void operator()(const A (&in)[2], A (&out)[1]) const {
    out[0] = in[0] * vmath::sigmoid(in[0]) * in[1];
  }
};

// in: gate, up, dy; out: dgate, dup.
struct SwigluGrad {
  template <class A>
  __device__ void operator()(const A (&in)[3], A (&out)[2]) const {
    const A g = in[0];
    const A p = vmath::sigmoid(g);
    out[0] = in[2] * in[1] * p * (A(1) + g * (A(1) - p));
    out[1] = in[2] * g * p;
  }
};

void swiglu_fwd_cuda(const SwigluFwd& s) {
  dispatch_float(s.dtype, "swiglu_fwd", [&](auto tag) {
    using T = typename decltype(tag)::type;
    map<T, 2, 1>("swiglu_fwd", {{static_cast<const T*>(s.gate), static_cast<const T*>(s.up)}},
                 {{static_cast<T*>(s.y)}}, s.n, Swiglu{});
  });
}

void swiglu_bwd_cuda(const SwigluBwd& s) {
  dispatch_float(s.dtype, "swiglu_bwd", [&](auto tag) {
    using T = typename decltype(tag)::type;
    map<T, 3, 2>(
        "swiglu_bwd",
        {{static_cast<const T*>(s.gate), static_cast<const T*>(s.up), static_cast<const T*>(s.dy)}},
        {{static_cast<T*>(s.dgate), static_cast<T*>(s.dup)}}, s.n, SwigluGrad{});
  });
}

// Units of V elements; V divides D.
template <class T, class R, int V>
__global__ void scale_rows_kernel(ScaleRowsFwd s, std::int64_t units, std::int64_t per_row) {
  using A = accum_t<T>;
  for (std::int64_t u = first_unit(); u < units; u += unit_step()) {
    const A factor = factor_of(s.factor, A(static_cast<const R*>(s.r)[quotient(u, per_row)]));
    const auto from = load_pack<V>(static_cast<const T*>(s.x) + u * V);
    Pack<T, V> to;
#pragma unroll
    for (int j = 0; j < V; ++j) to[j] = T(A(from[j]) * factor);
    store_pack(static_cast<T*>(s.y) + u * V, to);
  }
}

template <class T, class R>
void scale_rows(const ScaleRowsFwd& s) {
  constexpr int V = kPackOf<T>;
  if (s.D % V == 0 && can_pack<T, V>(static_cast<const T*>(s.x), static_cast<const T*>(s.y))) {
    launch("scale_rows_fwd", scale_rows_kernel<T, R, V>, blocks_for(s.M * s.D / V), kBlock, 0, s,
           s.M * s.D / V, s.D / V);
  } else {
    launch("scale_rows_fwd", scale_rows_kernel<T, R, 1>, blocks_for(s.M * s.D), kBlock, 0, s,
           s.M * s.D, s.D);
  }
}

// Both gradients in one pass over dy: `lanes` neighbours of a warp, a power of two, share a row.
template <class T, class R, int V>
__global__ void scale_rows_bwd_kernel(ScaleRowsBwd s, int lanes) {
  using A = accum_t<T>;
  const std::int64_t m = first_unit() / lanes;
  const bool inside = m < s.M;
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  const A r = inside ? A(static_cast<const R*>(s.r)[m]) : A(0);
  const A factor = factor_of(s.factor, r);
  A sum = 0;
  for (std::int64_t d = lane * V; inside && d < s.D; d += lanes * V) {
    const auto dy = load_pack<V>(static_cast<const T*>(s.dy) + m * s.D + d);
    if (s.dr) {
      const auto x = load_pack<V>(static_cast<const T*>(s.x) + m * s.D + d);
#pragma unroll
      for (int j = 0; j < V; ++j) sum += A(dy[j]) * A(x[j]);
    }
    if (!s.dx) continue;
    Pack<T, V> dx;
#pragma unroll
    for (int j = 0; j < V; ++j) dx[j] = T(A(dy[j]) * factor);
    store_pack(static_cast<T*>(s.dx) + m * s.D + d, dx);
  }
  if (!s.dr) return;
  for (int step = lanes / 2; step > 0; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
  if (inside && lane == 0) static_cast<R*>(s.dr)[m] = R(sum * factor_slope(s.factor, r));
}

template <class T, class R>
void scale_rows_backward(const ScaleRowsBwd& s) {
  constexpr int V = kPackOf<T>;
  const bool packs =
      s.D % V == 0 && can_pack<T, V>(static_cast<const T*>(s.x), static_cast<const T*>(s.dy),
                                     static_cast<const T*>(s.dx));
  int lanes = 1;
  while (lanes < kWarp && lanes * (packs ? V : 1) < s.D) lanes *= 2;
  const auto blocks = static_cast<unsigned>(ceil_div(s.M * lanes, kBlock));
  launch("scale_rows_bwd", packs ? scale_rows_bwd_kernel<T, R, V> : scale_rows_bwd_kernel<T, R, 1>,
         blocks, kBlock, 0, s, lanes);
}

// r has the dtype of x, or its accumulation type.
template <class S, class F>
void dispatch_rows(const S& s, const char* name, F&& fn) {
  dispatch_float(s.dtype, name, [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (s.r_dtype == s.dtype) {
      fn(tag, TypeTag<T>{});
    } else {
      fn(tag, TypeTag<accum_t<T>>{});
    }
  });
}

void scale_rows_fwd_cuda(const ScaleRowsFwd& s) {
  if (s.M * s.D == 0) return;
  dispatch_rows(s, "scale_rows_fwd", [&](auto t, auto r) {
    scale_rows<typename decltype(t)::type, typename decltype(r)::type>(s);
  });
}

void scale_rows_bwd_cuda(const ScaleRowsBwd& s) {
  if (s.M == 0 || !(s.dx || s.dr)) return;
  dispatch_rows(s, "scale_rows_bwd", [&](auto t, auto r) {
    scale_rows_backward<typename decltype(t)::type, typename decltype(r)::type>(s);
  });
}

// Units of V elements; V divides C.
template <class T, int V>
__global__ void key_shift_kernel(KeyShiftFwd k, std::int64_t units, std::int64_t per_row) {
  using A = accum_t<T>;
  const T* x = static_cast<const T*>(k.x);
  for (std::int64_t u = first_unit(); u < units; u += unit_step()) {
    const std::int64_t row = quotient(u, per_row);
    auto to = load_pack<V>(x + u * V);
    if (row - quotient(row, k.T) * k.T > 0) {
      const auto before = load_pack<V>(x + (u - per_row) * V);
      const auto mu = load_pack<V>(static_cast<const T*>(k.mu) + (u - row * per_row) * V);
#pragma unroll
      for (int j = 0; j < V; ++j) to[j] = T(A(to[j]) + A(mu[j]) * A(before[j]));
    }
    store_pack(static_cast<T*>(k.y) + u * V, to);
  }
}

template <class T>
void key_shift(const KeyShiftFwd& k) {
  constexpr int V = kPackOf<T>;
  const std::int64_t n = k.B * k.T * k.C;
  if (k.C % V == 0 && can_pack<T, V>(static_cast<const T*>(k.x), static_cast<const T*>(k.mu),
                                     static_cast<const T*>(k.y))) {
    launch("key_shift_fwd", key_shift_kernel<T, V>, blocks_for(n / V), kBlock, 0, k, n / V,
           k.C / V);
  } else {
    launch("key_shift_fwd", key_shift_kernel<T, 1>, blocks_for(n), kBlock, 0, k, n, k.C);
  }
}

constexpr int kShiftLanes = 8;  // runs of rows that a block walks side by side

/// Both gradients in one walk down the rows. A thread has V columns of a run of rows and keeps the
/// next row of dy for the next turn; partial [blocks, C] gets what a block's rows add to dmu.
template <class T, int V>
__global__ void __launch_bounds__(kWarp* kShiftLanes)
    key_shift_bwd_kernel(KeyShiftBwd k, std::int64_t run, accum_t<T>* partial) {
  using A = accum_t<T>;
  using Columns = Pack<T, V>;
  __shared__ A sums[kShiftLanes][V][kWarp];
  const std::int64_t c = (static_cast<std::int64_t>(blockIdx.y) * kWarp + threadIdx.x) * V;
  const std::int64_t rows = k.B * k.T;
  const std::int64_t first =
      (static_cast<std::int64_t>(blockIdx.x) * kShiftLanes + threadIdx.y) * run;
  const std::int64_t end = c < k.C ? min(rows, first + run) : 0;
  const T* __restrict__ x = static_cast<const T*>(k.x) + c;
  const T* __restrict__ dy = static_cast<const T*>(k.dy) + c;
  T* __restrict__ dx = static_cast<T*>(k.dx) + c;
  A sum[V] = {};
  if (first < end) {
    const auto mu = load_pack<V>(static_cast<const T*>(k.mu) + c);
    std::int64_t t = first - quotient(first, k.T) * k.T;
    Columns own = load_pack<V>(dy + first * k.C);
#pragma unroll 4
    for (std::int64_t row = first; row < end; ++row) {
      const Columns next = row + 1 < rows ? load_pack<V>(dy + (row + 1) * k.C) : own;
      if (k.dmu && t > 0) {
        const auto before = load_pack<V>(x + (row - 1) * k.C);
#pragma unroll
        for (int j = 0; j < V; ++j) sum[j] += A(own[j]) * A(before[j]);
      }
      const bool last = ++t == k.T;
      if (last) t = 0;
      if (k.dx) {
        Columns to;
        if (k.add_dx) to = load_pack<V>(dx + row * k.C);
#pragma unroll
        for (int j = 0; j < V; ++j) {
          const A value = k.add_dx ? A(to[j]) + A(own[j]) : A(own[j]);
          to[j] = T(last ? value : value + A(mu[j]) * A(next[j]));
        }
        store_pack(dx + row * k.C, to);
      }
      own = next;
    }
  }
  if (!k.dmu) return;
#pragma unroll
  for (int j = 0; j < V; ++j) sums[threadIdx.y][j][threadIdx.x] = sum[j];
  __syncthreads();
  if (threadIdx.y > 0 || c >= k.C) return;
  for (int j = 0; j < V; ++j) {
    A total = 0;
    for (const auto& lane : sums) total += lane[j][threadIdx.x];
    partial[blockIdx.x * k.C + c + j] = total;
  }
}

template <class T>
struct StoreColumn {
  using A = accum_t<T>;
  T* out;

  __device__ void operator()(std::int64_t, std::int64_t, std::int64_t c, const A (&sum)[1]) const {
    out[c] = T(sum[0]);
  }
};

template <class T, int V>
void key_shift_backward(const KeyShiftBwd& k) {
  using A = accum_t<T>;
  constexpr std::int64_t kBlocksWanted = 1024;
  constexpr std::int64_t kLeastRun = 4;  // rows; fewer are not worth their sums
  const std::int64_t columns = ceil_div(k.C, std::int64_t{kWarp} * V);
  const std::int64_t most = std::max<std::int64_t>(1, kBlocksWanted / columns) * kShiftLanes;
  const std::int64_t run = std::max(kLeastRun, ceil_div(k.B * k.T, most));
  const std::int64_t blocks = ceil_div(k.B * k.T, run * kShiftLanes);
  const Storage memory = scratch(static_cast<std::size_t>(k.dmu ? blocks * k.C : 0) * sizeof(A));
  A* partial = static_cast<A*>(memory.data());
  launch("key_shift_bwd", key_shift_bwd_kernel<T, V>,
         dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(columns)),
         dim3(kWarp, kShiftLanes), 0, k, run, partial);
  if (!k.dmu) return;
  sum_chunks<A, 1>("key_shift_bwd", 1, blocks, k.C, partial,
                   StoreColumn<T>{static_cast<T*>(k.dmu)});
}

void key_shift_fwd_cuda(const KeyShiftFwd& k) {
  if (k.B * k.T * k.C == 0) return;
  dispatch_float(k.dtype, "key_shift_fwd",
                 [&](auto tag) { key_shift<typename decltype(tag)::type>(k); });
}

void key_shift_bwd_cuda(const KeyShiftBwd& k) {
  if (k.B * k.T * k.C == 0) return;
  dispatch_float(k.dtype, "key_shift_bwd", [&](auto tag) {
    using T = typename decltype(tag)::type;
    constexpr int V = kPackOf<T>;
    const auto at = [](const void* p) { return static_cast<const T*>(p); };
    const bool packs = k.C % V == 0 && can_pack<T, V>(at(k.x), at(k.mu), at(k.dy), at(k.dx));
    packs ? key_shift_backward<T, V>(k) : key_shift_backward<T, 1>(k);
  });
}

}  // namespace

void install_elementwise_fused_kernels() {
  swiglu_fwd.install(DeviceType::cuda, swiglu_fwd_cuda);
  swiglu_bwd.install(DeviceType::cuda, swiglu_bwd_cuda);
  scale_rows_fwd.install(DeviceType::cuda, scale_rows_fwd_cuda);
  scale_rows_bwd.install(DeviceType::cuda, scale_rows_bwd_cuda);
  key_shift_fwd.install(DeviceType::cuda, key_shift_fwd_cuda);
  key_shift_bwd.install(DeviceType::cuda, key_shift_bwd_cuda);
}

}  // namespace proteus::cuda
