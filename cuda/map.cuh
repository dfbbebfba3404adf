// Elementwise kernels over contiguous tensors of one type: K inputs, M outputs, a function of one
// element. Packs of 16 bytes where every pointer is aligned; an output may be an input.
#pragma once

#include "cuda/kernel.cuh"

namespace proteus::cuda {

template <class T, int K>
struct Pointers {
  T* p[K];
};

// f(x, y): x holds an element of every input, y gets one for every output, both in accum_t<T>.
template <class T, int K, int M, class F>
__global__ void map_kernel(Pointers<const T, K> in, Pointers<T, M> out, std::int64_t n,
                           std::int64_t packs, F f) {
  using A = accum_t<T>;
  constexpr int V = kPackOf<T>;
  for (std::int64_t u = first_unit(); u < packs; u += unit_step()) {
    Pack<T, V> x[K];
    Pack<T, V> y[M];
#pragma unroll
    for (int k = 0; k < K; ++k) x[k] = load_pack<V>(in.p[k] + u * V);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      A from[K];
      A to[M];
#pragma unroll
      for (int k = 0; k < K; ++k) from[k] = A(x[k][j]);
      f(from, to);
#pragma unroll
      for (int m = 0; m < M; ++m) y[m][j] = T(to[m]);
    }
#pragma unroll
    for (int m = 0; m < M; ++m) store_pack(out.p[m] + u * V, y[m]);
  }
  // What no pack covers.
  for (std::int64_t i = packs * V + first_unit(); i < n; i += unit_step()) {
    A from[K];
    A to[M];
#pragma unroll
    for (int k = 0; k < K; ++k) from[k] = A(in.p[k][i]);
    f(from, to);
#pragma unroll
    for (int m = 0; m < M; ++m) out.p[m][i] = T(to[m]);
  }
}

/// y_m[i] = f(x_1[i], …, x_K[i])_m for i < n.
template <class T, int K, int M, class F>
void map(const char* name, const Pointers<const T, K>& in, const Pointers<T, M>& out,
         std::int64_t n, F f) {
  if (n == 0) return;
  constexpr int V = kPackOf<T>;
  bool aligned = true;
  for (int k = 0; k < K; ++k) aligned = aligned && can_pack<T, V>(in.p[k]);
  for (int m = 0; m < M; ++m) aligned = aligned && can_pack<T, V>(out.p[m]);
  const std::int64_t packs = aligned ? n / V : 0;
  launch(name, map_kernel<T, K, M, F>, blocks_for(std::max(packs, n - packs * V)), kBlock, 0, in,
         out, n, packs, f);
}

}  // namespace proteus::cuda
