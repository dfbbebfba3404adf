// The fused forms of tensor/ops/elementwise.h on a GPU: swiglu, scale_rows, key_shift.
#include "cuda/column_sums.cuh"
#include "cuda/kernels.h"
#include "cuda/map.cuh"
#include "tensor/ops/elementwise.h"
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
__global__ void scale_rows_kernel(const T* x, const R* r, T* y, std::int64_t units,
                                  std::int64_t per_row) {
  using A = accum_t<T>;
  for (std::int64_t u = first_unit(); u < units; u += unit_step()) {
    const A factor = A(r[quotient(u, per_row)]);
    const auto from = load_pack<V>(x + u * V);
    Pack<T, V> to;
#pragma unroll
    for (int j = 0; j < V; ++j) to[j] = T(A(from[j]) * factor);
    store_pack(y + u * V, to);
  }
}

template <class T, class R>
void scale_rows(const char* name, const void* x_any, const void* r_any, void* y_any, std::int64_t M,
                std::int64_t D) {
  constexpr int V = kPackOf<T>;
  const T* x = static_cast<const T*>(x_any);
  const R* r = static_cast<const R*>(r_any);
  T* y = static_cast<T*>(y_any);
  if (D % V == 0 && can_pack<T, V>(x, y)) {
    launch(name, scale_rows_kernel<T, R, V>, blocks_for(M * D / V), kBlock, 0, x, r, y, M * D / V,
           D / V);
  } else {
    launch(name, scale_rows_kernel<T, R, 1>, blocks_for(M * D), kBlock, 0, x, r, y, M * D, D);
  }
}

template <class T, class R, int kThreads>
__global__ void row_dots_kernel(const T* x, const T* dy, R* dr, std::int64_t M, std::int64_t D) {
  using A = accum_t<T>;
  using Groups = RowGroups<kThreads>;
  for (std::int64_t m = Groups::first(); m < M; m += Groups::step()) {
    A sum = 0;
    for (std::int64_t d = Groups::lane(); d < D; d += kThreads) {
      sum += A(dy[m * D + d]) * A(x[m * D + d]);
    }
    sum = group_sum<kThreads>(sum);
    if (Groups::lane() == 0) dr[m] = R(sum);
  }
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
    scale_rows<typename decltype(t)::type, typename decltype(r)::type>("scale_rows_fwd", s.x, s.r,
                                                                       s.y, s.M, s.D);
  });
}

void scale_rows_bwd_cuda(const ScaleRowsBwd& s) {
  if (s.M == 0) return;
  dispatch_rows(s, "scale_rows_bwd", [&](auto t, auto r) {
    using T = typename decltype(t)::type;
    using R = typename decltype(r)::type;
    if (s.dr) {
      dispatch_row_threads(s.D, [&](auto threads) {
        constexpr int kThreads = decltype(threads)::value;
        using Groups = RowGroups<kThreads>;
        launch("scale_rows_bwd", row_dots_kernel<T, R, kThreads>, Groups::blocks(s.M),
               Groups::kBlockThreads, 0, static_cast<const T*>(s.x), static_cast<const T*>(s.dy),
               static_cast<R*>(s.dr), s.M, s.D);
      });
    }
    if (s.dx && s.D > 0) scale_rows<T, R>("scale_rows_bwd", s.dy, s.r, s.dx, s.M, s.D);
  });
}

// One kernel for both directions: y_t = x_t + mu ⊙ x_{t+kStep}, where there is a t + kStep in the
// sequence. Units of V elements; V divides C.
template <class T, int V, int kStep>
__global__ void key_shift_kernel(const T* x, const T* mu, T* y, std::int64_t units,
                                 std::int64_t per_row, std::int64_t length) {
  using A = accum_t<T>;
  for (std::int64_t u = first_unit(); u < units; u += unit_step()) {
    const std::int64_t row = quotient(u, per_row);
    const std::int64_t t = row - quotient(row, length) * length;
    auto to = load_pack<V>(x + u * V);
    if (t + kStep >= 0 && t + kStep < length) {
      const auto other = load_pack<V>(x + (u + kStep * per_row) * V);
      const auto weight = load_pack<V>(mu + (u - row * per_row) * V);
#pragma unroll
      for (int j = 0; j < V; ++j) to[j] = T(A(to[j]) + A(weight[j]) * A(other[j]));
    }
    store_pack(y + u * V, to);
  }
}

template <class T, int kStep>
void key_shift(const char* name, const void* x_any, const void* mu_any, void* y_any,
               std::int64_t rows, std::int64_t length, std::int64_t C) {
  constexpr int V = kPackOf<T>;
  const T* x = static_cast<const T*>(x_any);
  const T* mu = static_cast<const T*>(mu_any);
  T* y = static_cast<T*>(y_any);
  if (C % V == 0 && can_pack<T, V>(x, mu, y)) {
    const std::int64_t units = rows * (C / V);
    launch(name, key_shift_kernel<T, V, kStep>, blocks_for(units), kBlock, 0, x, mu, y, units,
           C / V, length);
  } else {
    launch(name, key_shift_kernel<T, 1, kStep>, blocks_for(rows * C), kBlock, 0, x, mu, y, rows * C,
           C, length);
  }
}

// dmu[c] = Σ dy[r, c]·x[r − 1, c] over rows that are not the first of a sequence.
template <class T>
struct KeyShiftTerm {
  using A = accum_t<T>;
  const T* x;
  const T* dy;
  std::int64_t length, C;

  __device__ void operator()(std::int64_t, std::int64_t r, std::int64_t c, A (&add)[1]) const {
    const bool first = r == quotient(r, length) * length;
    add[0] = first ? A(0) : A(dy[r * C + c]) * A(x[(r - 1) * C + c]);
  }
};

template <class T>
struct StoreColumn {
  using A = accum_t<T>;
  T* out;

  __device__ void operator()(std::int64_t, std::int64_t, std::int64_t c, const A (&sum)[1]) const {
    out[c] = T(sum[0]);
  }
};

void key_shift_fwd_cuda(const KeyShiftFwd& k) {
  if (k.B * k.T * k.C == 0) return;
  dispatch_float(k.dtype, "key_shift_fwd", [&](auto tag) {
    key_shift<typename decltype(tag)::type, -1>("key_shift_fwd", k.x, k.mu, k.y, k.B * k.T, k.T,
                                                k.C);
  });
}

void key_shift_bwd_cuda(const KeyShiftBwd& k) {
  if (k.B * k.T * k.C == 0) return;
  dispatch_float(k.dtype, "key_shift_bwd", [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (k.dx) key_shift<T, 1>("key_shift_bwd", k.dy, k.mu, k.dx, k.B * k.T, k.T, k.C);
    if (k.dmu) {
      column_sums<accum_t<T>, 1>(
          "key_shift_bwd", 1, k.B * k.T, k.C,
          KeyShiftTerm<T>{static_cast<const T*>(k.x), static_cast<const T*>(k.dy), k.T, k.C},
          StoreColumn<T>{static_cast<T*>(k.dmu)});
    }
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
