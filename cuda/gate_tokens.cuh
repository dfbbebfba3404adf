// Eight neighbouring lanes share a token and have a slot each: what the kernels of packed rows in
// routing space have in common.
#pragma once

#include "cuda/rows.cuh"

namespace proteus::cuda {

constexpr int kTokenLanes = 8;  // that share a token: a quarter of a warp

/// The lanes of this lane's token.
__device__ inline unsigned token_lanes() {
  return ((1u << kTokenLanes) - 1) << (lane() / kTokenLanes * kTokenLanes);
}

/// The value of the lane that has slot `slot` of the token.
template <class V>
__device__ inline V of_slot(V value, int slot) {
  return __shfl_sync(token_lanes(), value, slot, kTokenLanes);
}

/// Σ over the lanes of a token; every one of them gets it.
template <class T>
__device__ inline T token_sum(T value) {
  const unsigned lanes = token_lanes();
#pragma unroll
  for (int step = kTokenLanes / 2; step > 0; step /= 2)
    value += __shfl_xor_sync(lanes, value, step);
  return value;
}

}  // namespace proteus::cuda
