// The maximum of a row and the sum of e^(x − maximum) in one pass over it (Milakov & Gimelshein,
// arXiv:1805.02867): a sum so far is rescaled whenever the maximum grows.
#pragma once

#include <limits>

#include "cuda/kernel.cuh"
#include "tensor/vmath.h"

namespace proteus::cuda {

template <class A>
struct RowSum {
  A top;  ///< −∞ for a row of −∞ or NaN
  A sum;  ///< Σ e^(x − top), with 0 for top = −∞
};

/// e^(x − top), where −∞ − (−∞) counts as −∞.
template <class A>
__device__ A shifted_exp(A x, A top) {
  return vmath::exp(x - (top == -std::numeric_limits<A>::infinity() ? A(0) : top));
}

/// Of x[0, C), by the kThreads of a group; every thread gets the result. V divides C.
template <int V, int kThreads, class T>
__device__ RowSum<accum_t<T>> row_sum_exp(const T* x, std::int64_t C) {
  using A = accum_t<T>;
  constexpr A kInf = std::numeric_limits<A>::infinity();
  A top = -kInf;
  A sum = 0;
  for (std::int64_t c = RowGroups<kThreads>::lane() * V; c < C; c += kThreads * V) {
    const auto p = load_pack<V>(x + c);
    A larger = top;
#pragma unroll
    for (int j = 0; j < V; ++j) larger = A(p[j]) > larger ? A(p[j]) : larger;
    if (larger > top) {
      sum *= shifted_exp(top, larger);
      top = larger;
    }
#pragma unroll
    for (int j = 0; j < V; ++j) sum += shifted_exp(A(p[j]), top);
  }
  const A all = group_reduce<kThreads>(top, Larger{}, -kInf);
  return {all, group_sum<kThreads>(sum * shifted_exp(top, all))};
}

}  // namespace proteus::cuda
