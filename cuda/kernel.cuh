// What the CUDA kernels are built from: launching on the current stream, grid-stride indices,
// 16-byte accesses, and reductions whose order depends on sizes alone. The runtime dtype becomes a
// type through dispatch_float and dispatch_all (tensor/dtype.h), sums are kept in accum_t.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cuda/check.h"
#include "cuda/stream.h"
#include "tensor/dtype.h"
#include "tensor/storage.h"

namespace proteus::cuda {

constexpr int kWarp = 32;
constexpr int kBlock = 256;  // threads of a block, unless a kernel says otherwise
constexpr unsigned kAllLanes = 0xffffffffu;

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

/// Blocks for `n` units of work in a grid-stride loop, one unit per thread and turn: as many as the
/// work has, or enough to keep every multiprocessor busy to the end.
inline unsigned blocks_for(std::int64_t n, int threads = kBlock) {
  constexpr std::int64_t kBlocksEach = 16;
  return static_cast<unsigned>(
      std::clamp<std::int64_t>(ceil_div(n, threads), 1, kBlocksEach * multiprocessors()));
}

/// Launches `kernel` on the current stream; `name` is how errors call it.
template <class... Params, class... Args>
void launch(const char* name, void (*kernel)(Params...), dim3 grid, dim3 block, std::size_t shared,
            const Args&... args) {
  kernel<<<grid, block, shared, current_stream()>>>(args...);
  check(cudaGetLastError(), name);
}

/// The device that kernels are queued on.
inline Device here() { return {DeviceType::cuda, current_device()}; }

/// Memory for the length of a kernel call, counted like every tensor. It may go out of scope while
/// the kernel runs: freeing happens on the stream, after it.
inline Storage scratch(std::size_t bytes) {
  return Storage(std::max<std::size_t>(bytes, 1), here());
}

/// First unit of this thread in a grid-stride loop, and the step to its next.
__device__ inline std::int64_t first_unit() {
  return static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ inline std::int64_t unit_step() {
  return static_cast<std::int64_t>(gridDim.x) * blockDim.x;
}

/// a / b of numbers that are not negative: in 32 bits, several times faster, where they fit.
__device__ inline std::int64_t quotient(std::int64_t a, std::int64_t b) {
  if (((a | b) >> 32) == 0) {
    return static_cast<std::uint32_t>(a) / static_cast<std::uint32_t>(b);
  }
  return a / b;
}

/// N neighbouring elements, read and written in words of up to 16 bytes.
template <class T, int N>
struct Pack {
  static constexpr std::size_t kBytes = N * sizeof(T);
  static constexpr std::size_t kAlign = kBytes < 16 ? kBytes : 16;
  using Word = std::conditional_t<
      kBytes % 16 == 0, uint4,
      std::conditional_t<
          kBytes % 8 == 0, uint2,
          std::conditional_t<kBytes % 4 == 0, std::uint32_t,
                             std::conditional_t<kBytes % 2 == 0, std::uint16_t, std::uint8_t>>>>;
  static constexpr int kWords = static_cast<int>(kBytes / sizeof(Word));

  alignas(sizeof(Word)) T v[N];

  __device__ T& operator[](int i) { return v[i]; }
  __device__ const T& operator[](int i) const { return v[i]; }
};

/// Elements of T in 16 bytes.
template <class T>
constexpr int kPackOf = static_cast<int>(16 / sizeof(T));

/// p must be aligned to Pack<T, N>::Word.
template <int N, class T>
__device__ Pack<T, N> load_pack(const T* p) {
  using P = Pack<T, N>;
  P out;
#pragma unroll
  for (int w = 0; w < P::kWords; ++w) {
    const auto word = reinterpret_cast<const typename P::Word*>(p)[w];
    memcpy(reinterpret_cast<char*>(out.v) + w * sizeof(word), &word, sizeof(word));
  }
  return out;
}

template <int N, class T>
__device__ void store_pack(T* p, const Pack<T, N>& pack) {
  using P = Pack<T, N>;
#pragma unroll
  for (int w = 0; w < P::kWords; ++w) {
    typename P::Word word;
    memcpy(&word, reinterpret_cast<const char*>(pack.v) + w * sizeof(word), sizeof(word));
    reinterpret_cast<typename P::Word*>(p)[w] = word;
  }
}

/// Whether every pointer that is not null can be read in packs of N elements.
template <class T, int N, class... Pointers>
bool can_pack(Pointers... pointers) {
  constexpr std::uintptr_t kMask = sizeof(typename Pack<T, N>::Word) - 1;
  return (((reinterpret_cast<std::uintptr_t>(pointers) & kMask) == 0) && ...);
}

struct Plus {
  template <class A>
  __device__ A operator()(A a, A b) const {
    return a + b;
  }
};

/// NaN loses, as in the kernels of the CPU: it shows up in the sum.
struct Larger {
  template <class A>
  __device__ A operator()(A a, A b) const {
    return b > a ? b : a;
  }
};

/// op over the lanes of a warp, the same bits in every lane; op commutes. All lanes take part.
template <class A, class Op>
__device__ A warp_reduce(A value, Op op) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    value = op(value, __shfl_xor_sync(kAllLanes, value, offset));
  }
  return value;
}

/// The sum of `value` over the lanes up to this one. All lanes take part.
template <class A>
__device__ A sum_up_to_lane(A value) {
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    const A before = __shfl_up_sync(kAllLanes, value, step);
    if (static_cast<int>(threadIdx.x) % kWarp >= step) value += before;
  }
  return value;
}

/// op over kThreads threads: the lanes of a warp, or a whole block of kThreads. Every thread gets
/// the result. All threads take part.
template <int kThreads, class A, class Op>
__device__ A group_reduce(A value, Op op, A identity) {
  static_assert(kThreads % kWarp == 0 && kThreads / kWarp <= kWarp);
  value = warp_reduce(value, op);
  if constexpr (kThreads > kWarp) {
    constexpr int kWarps = kThreads / kWarp;
    __shared__ A partial[kWarps];
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    if (lane == 0) partial[threadIdx.x / kWarp] = value;
    __syncthreads();
    value = warp_reduce(lane < kWarps ? partial[lane] : identity, op);
    __syncthreads();  // the next reduction writes `partial`
  }
  return value;
}

template <int kThreads, class A>
__device__ A group_sum(A value) {
  return group_reduce<kThreads>(value, Plus{}, A(0));
}

/// Rows of a matrix shared out among groups of kThreads: a warp each, or a block each.
template <int kThreads>
struct RowGroups {
  static constexpr int kBlockThreads = kThreads == kWarp ? kBlock : kThreads;
  static constexpr int kPerBlock = kBlockThreads / kThreads;

  static unsigned blocks(std::int64_t rows) { return blocks_for(rows, kPerBlock); }
  __device__ static std::int64_t first() {
    return static_cast<std::int64_t>(blockIdx.x) * kPerBlock + threadIdx.x / kThreads;
  }
  __device__ static std::int64_t step() { return static_cast<std::int64_t>(gridDim.x) * kPerBlock; }
  __device__ static int lane() { return static_cast<int>(threadIdx.x) % kThreads; }
};

/// Rows up to this long go to a warp, longer ones to a block.
constexpr std::int64_t kWarpRow = 1024;

/// Calls fn(integral_constant<threads per row>).
template <class F>
void dispatch_row_threads(std::int64_t C, F&& fn) {
  if (C <= kWarpRow) {
    fn(std::integral_constant<int, kWarp>{});
  } else {
    fn(std::integral_constant<int, kBlock>{});
  }
}

}  // namespace proteus::cuda
