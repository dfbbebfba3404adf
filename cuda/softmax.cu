// softmax, log_softmax and logsumexp of tensor/ops/softmax.h on a GPU: a row belongs to a warp, or
// to a block where it is long.
#include <cmath>

#include "cuda/kernels.h"
#include "cuda/row_softmax.cuh"
#include "tensor/ops/softmax.h"

namespace proteus::cuda {
namespace {

template <class T, int V, int kThreads, SoftmaxOp op>
__global__ void softmax_fwd_kernel(const T* x_all, T* y_all, accum_t<T>* lse_all, std::int64_t rows,
                                   std::int64_t C) {
  using A = accum_t<T>;
  using Groups = RowGroups<kThreads>;
  constexpr A kInf = std::numeric_limits<A>::infinity();
  for (std::int64_t row = Groups::first(); row < rows; row += Groups::step()) {
    const T* x = x_all + row * C;
    const auto [top, sum] = row_sum_exp<V, kThreads>(x, C);
    const A m = top == -kInf ? A(0) : top;
    const A lse = sum == A(0) ? -kInf : m + std::log(sum);
    if (Groups::lane() == 0) {
      if (lse_all) lse_all[row] = lse;
      if constexpr (op == SoftmaxOp::logsumexp) y_all[row] = T(lse);
    }
    if constexpr (op != SoftmaxOp::logsumexp) {
      const A inverse = sum == A(0) ? A(0) : A(1) / sum;
      const A shift = lse == -kInf ? A(0) : lse;
      for (std::int64_t c = Groups::lane() * V; c < C; c += kThreads * V) {
        const auto p = load_pack<V>(x + c);
        Pack<T, V> y;
#pragma unroll
        for (int j = 0; j < V; ++j) {
          y[j] =
              op == SoftmaxOp::softmax ? T(vmath::exp(A(p[j]) - m) * inverse) : T(A(p[j]) - shift);
        }
        store_pack(y_all + row * C + c, y);
      }
    }
  }
}

// dx = y·(dy − Σ dy·y).
template <class T, int V, int kThreads>
__global__ void softmax_bwd_kernel(const T* y_all, const T* dy_all, T* dx_all, std::int64_t rows,
                                   std::int64_t C) {
  using A = accum_t<T>;
  using Groups = RowGroups<kThreads>;
  for (std::int64_t row = Groups::first(); row < rows; row += Groups::step()) {
    const T* y = y_all + row * C;
    const T* dy = dy_all + row * C;
    A dot = 0;
    for (std::int64_t c = Groups::lane() * V; c < C; c += kThreads * V) {
      const auto p = load_pack<V>(y + c);
      const auto d = load_pack<V>(dy + c);
#pragma unroll
      for (int j = 0; j < V; ++j) dot += A(d[j]) * A(p[j]);
    }
    dot = group_sum<kThreads>(dot);
    for (std::int64_t c = Groups::lane() * V; c < C; c += kThreads * V) {
      const auto p = load_pack<V>(y + c);
      const auto d = load_pack<V>(dy + c);
      Pack<T, V> dx;
#pragma unroll
      for (int j = 0; j < V; ++j) dx[j] = T(A(p[j]) * (A(d[j]) - dot));
      store_pack(dx_all + row * C + c, dx);
    }
  }
}

// log_softmax: dx = dy − e^(x − lse)·Σ dy; logsumexp: dx = e^(x − lse)·dy[row].
template <class T, int V, int kThreads, bool kLog>
__global__ void lse_bwd_kernel(const T* x_all, const accum_t<T>* lse_all, const T* dy_all,
                               T* dx_all, std::int64_t rows, std::int64_t C) {
  using A = accum_t<T>;
  using Groups = RowGroups<kThreads>;
  for (std::int64_t row = Groups::first(); row < rows; row += Groups::step()) {
    const T* x = x_all + row * C;
    const T* dy = dy_all + (kLog ? row * C : row);
    const A lse = lse_all[row];
    A sum = 0;
    if constexpr (kLog) {
      for (std::int64_t c = Groups::lane() * V; c < C; c += kThreads * V) {
        const auto d = load_pack<V>(dy + c);
#pragma unroll
        for (int j = 0; j < V; ++j) sum += A(d[j]);
      }
      sum = group_sum<kThreads>(sum);
    } else {
      sum = A(dy[0]);
    }
    for (std::int64_t c = Groups::lane() * V; c < C; c += kThreads * V) {
      const auto p = load_pack<V>(x + c);
      Pack<T, V> d;
      if constexpr (kLog) d = load_pack<V>(dy + c);
      Pack<T, V> dx;
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const A share = shifted_exp(A(p[j]), lse) * sum;
        dx[j] = kLog ? T(A(d[j]) - share) : T(share);
      }
      store_pack(dx_all + row * C + c, dx);
    }
  }
}

// Calls fn(elements per access, threads per row).
template <class T, class F>
void dispatch_rows(bool packed, std::int64_t C, F&& fn) {
  dispatch_row_threads(C, [&](auto threads) {
    if (packed && C % kPackOf<T> == 0) {
      fn(std::integral_constant<int, kPackOf<T>>{}, threads);
    } else {
      fn(std::integral_constant<int, 1>{}, threads);
    }
  });
}

template <SoftmaxOp op>
void softmax_fwd_op(const SoftmaxFwd& s) {
  dispatch_float(s.dtype, "softmax_fwd", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const T* x = static_cast<const T*>(s.x);
    T* y = static_cast<T*>(s.y);
    const bool packed = can_pack<T, kPackOf<T>>(x, y);
    dispatch_rows<T>(packed, s.C, [&](auto V, auto threads) {
      using Groups = RowGroups<decltype(threads)::value>;
      launch("softmax_fwd", softmax_fwd_kernel<T, decltype(V)::value, decltype(threads)::value, op>,
             Groups::blocks(s.rows), Groups::kBlockThreads, 0, x, y,
             static_cast<accum_t<T>*>(s.lse), s.rows, s.C);
    });
  });
}

void softmax_fwd_cuda(const SoftmaxFwd& s) {
  if (s.rows == 0) return;
  switch (s.op) {
    case SoftmaxOp::softmax:
      return softmax_fwd_op<SoftmaxOp::softmax>(s);
    case SoftmaxOp::log_softmax:
      return softmax_fwd_op<SoftmaxOp::log_softmax>(s);
    case SoftmaxOp::logsumexp:
      return softmax_fwd_op<SoftmaxOp::logsumexp>(s);
  }
}

void softmax_bwd_cuda(const SoftmaxBwd& s) {
  if (s.rows == 0) return;
  dispatch_float(s.dtype, "softmax_bwd", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const T* from = static_cast<const T*>(s.op == SoftmaxOp::softmax ? s.y : s.x);
    const T* dy = static_cast<const T*>(s.dy);
    const auto* lse = static_cast<const accum_t<T>*>(s.lse);
    T* dx = static_cast<T*>(s.dx);
    const bool packed = can_pack<T, kPackOf<T>>(from, dx) &&
                        (s.op == SoftmaxOp::logsumexp || can_pack<T, kPackOf<T>>(dy));
    dispatch_rows<T>(packed, s.C, [&](auto V, auto threads) {
      constexpr int kV = decltype(V)::value;
      constexpr int kThreads = decltype(threads)::value;
      using Groups = RowGroups<kThreads>;
      const unsigned grid = Groups::blocks(s.rows);
      constexpr int kBlockThreads = Groups::kBlockThreads;
      if (s.op == SoftmaxOp::softmax) {
        launch("softmax_bwd", softmax_bwd_kernel<T, kV, kThreads>, grid, kBlockThreads, 0, from, dy,
               dx, s.rows, s.C);
      } else if (s.op == SoftmaxOp::log_softmax) {
        launch("softmax_bwd", lse_bwd_kernel<T, kV, kThreads, true>, grid, kBlockThreads, 0, from,
               lse, dy, dx, s.rows, s.C);
      } else {
        launch("softmax_bwd", lse_bwd_kernel<T, kV, kThreads, false>, grid, kBlockThreads, 0, from,
               lse, dy, dx, s.rows, s.C);
      }
    });
  });
}

}  // namespace

void install_softmax_kernels() {
  softmax_fwd.install(DeviceType::cuda, softmax_fwd_cuda);
  softmax_bwd.install(DeviceType::cuda, softmax_bwd_cuda);
}

}  // namespace proteus::cuda
