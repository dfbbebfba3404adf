// Walking strided layouts on a GPU: the iteration space of tensor/ops/strided.h is cut into units
// of V elements along its inner dimension, one unit per thread and turn.
#pragma once

#include <array>
#include <cstdint>

#include "cuda/kernel.cuh"
#include "tensor/ops/strided.h"

namespace proteus::cuda {

template <int N>
struct Units {
  Walk<N> walk;
  std::int64_t per_row = 1;  ///< units along the inner dimension
  std::int64_t count = 1;
  bool small = false;  ///< every index fits 32 bits, in which division is several times faster

  Units(const Walk<N>& w, int V) : walk(w), per_row(w.inner() / V), count(w.outer() * per_row) {
    small = count <= UINT32_MAX;
  }

  /// Offsets of the first element of a unit of V elements, for every operand.
  template <int V>
  __device__ std::array<std::int64_t, N> at(std::int64_t unit) const {
    return small ? at_as<V, std::uint32_t>(unit) : at_as<V, std::uint64_t>(unit);
  }

 private:
  template <int V, class Index>
  __device__ std::array<std::int64_t, N> at_as(std::int64_t unit) const {
    const Index width = static_cast<Index>(per_row);
    Index row = static_cast<Index>(unit) / width;
    const std::int64_t column =
        static_cast<std::int64_t>(static_cast<Index>(unit) - row * width) * V;
    std::array<std::int64_t, N> at;
#pragma unroll
    for (int n = 0; n < N; ++n) at[n] = column * walk.inner_stride(n);
    for (int d = walk.rank - 2; d >= 0; --d) {
      const Index size = static_cast<Index>(walk.size[d]);
      const Index rest = row / size;
      const std::int64_t i = static_cast<std::int64_t>(row - rest * size);
#pragma unroll
      for (int n = 0; n < N; ++n) at[n] += i * walk.stride[n][d];
      row = rest;
    }
    return at;
  }
};

/// Whether operand n can be read in packs of V elements of T at every unit: contiguous along the
/// inner dimension and aligned. `p` is its first element.
template <class T, int V, int N>
bool packs_fit(const Walk<N>& walk, int n, const T* p) {
  if (walk.inner_stride(n) != 1 || walk.inner() % V != 0 || !can_pack<T, V>(p)) return false;
  const auto words = static_cast<std::int64_t>(sizeof(typename Pack<T, V>::Word) / sizeof(T));
  for (int d = 0; d + 1 < walk.rank; ++d) {
    if (words > 0 && walk.stride[n][d] % words != 0) return false;
  }
  return true;
}

/// The V elements of a unit: in words where they are contiguous, one by one where a number is
/// repeated along the inner dimension (stride 0).
template <int V, class T>
__device__ Pack<T, V> load_run(const T* p, std::int64_t stride) {
  if (stride == 1) return load_pack<V>(p);
  Pack<T, V> out;
#pragma unroll
  for (int j = 0; j < V; ++j) out[j] = p[j * stride];
  return out;
}

}  // namespace proteus::cuda
