// What the kernels of routing and of packed rows share: warps that own a row, and where a row
// belongs.
#pragma once

#include <limits>

#include "cuda/kernel.cuh"

namespace proteus::cuda {

__device__ inline int lane() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ inline int warp_of_block() { return static_cast<int>(threadIdx.x) / kWarp; }

/// Blocks of kBlock threads that have a thread, or a warp, for each of `n` units; and this thread's
/// or warp's unit.
inline unsigned thread_blocks(std::int64_t n) { return static_cast<unsigned>(ceil_div(n, kBlock)); }
inline unsigned warp_blocks(std::int64_t n) {
  return static_cast<unsigned>(ceil_div(n, kBlock / kWarp));
}
/// Lets a kernel have `bytes` of shared memory, which needs asking for above 48 KiB.
template <class... Params>
void allow_shared(void (*kernel)(Params...), std::size_t bytes) {
  constexpr std::size_t kFree = 48 << 10;
  if (bytes <= kFree) return;
  check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                             cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
        "cudaFuncSetAttribute");
}

__device__ inline std::int64_t thread_unit() { return first_unit(); }
__device__ inline std::int64_t warp_unit() {
  return static_cast<std::int64_t>(blockIdx.x) * (kBlock / kWarp) + warp_of_block();
}

template <class T>
__device__ T warp_sum(T value) {
  return warp_reduce(value, Plus{});
}

/// a·b over R numbers by one warp; every lane gets it.
template <class T>
__device__ T warp_dot(const T* a, const T* b, std::int64_t R) {
  T sum = 0;
  for (std::int64_t r = lane(); r < R; r += kWarp) sum += a[r] * b[r];
  return warp_sum(sum);
}

/// 1/√square, or 0 for a vector too short to have a direction.
template <class T>
__device__ T inverse_root(T square) {
  return square < std::numeric_limits<T>::min() ? T(0) : T(1) / sqrt(square);
}

/// The part p with begin[p·stride] <= row < begin[(p + 1)·stride]; there is one.
__device__ inline std::int64_t part_of(const std::int32_t* begin, std::int64_t stride,
                                       std::int64_t parts, std::int64_t row) {
  std::int64_t low = 0;
  std::int64_t high = parts;
  while (high - low > 1) {
    const std::int64_t middle = (low + high) / 2;
    if (begin[middle * stride] <= row) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

}  // namespace proteus::cuda
