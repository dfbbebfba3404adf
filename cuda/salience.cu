// Token salience on a GPU (tensor/ops/salience.h), a warp to a token.
#include <algorithm>

#include "cuda/kernels.h"
#include "cuda/rows.cuh"
#include "tensor/ops/salience.h"

namespace proteus::cuda {
namespace {

constexpr int kWarps = kBlock / kWarp;

template <class T>
struct Products {
  T v;        // v·x
  T inverse;  // 1/|x|, 0 for a vector too short to have a direction
  T cosine;
};

template <class T>
__device__ Products<T> products(const T* x, const T* v, const T* p, std::int64_t R) {
  T with_v = 0;
  T with_p = 0;
  T square = 0;
  for (std::int64_t r = lane(); r < R; r += kWarp) {
    with_v += v[r] * x[r];
    with_p += p[r] * x[r];
    square += x[r] * x[r];
  }
  const T inverse = inverse_root(warp_sum(square));
  return {warp_sum(with_v), inverse, warp_sum(with_p) * inverse};
}

// The prototype of a token's gate; any vector where there are no prototypes.
template <class T, class Args>
__device__ const T* prototype(const Args& a, std::int64_t n) {
  return a.p ? static_cast<const T*>(a.p) + a.gate[n] * a.R : static_cast<const T*>(a.v);
}

template <class T>
__global__ void salience_kernel(SalienceFwd a) {
  const std::int64_t n = warp_unit();
  if (n >= a.N) return;
  const Products<T> dot = products(static_cast<const T*>(a.x) + n * a.R, static_cast<const T*>(a.v),
                                   prototype<T>(a, n), a.R);
  T s = dot.v;
  if (a.p) s += *static_cast<const T*>(a.kappa) * dot.cosine;
  if (lane() == 0) static_cast<T*>(a.s)[n] = s;
}

// parts [blocks, R + 1]: what the tokens of each block add to dv, and to dκ. Every warp sums dv in
// its own row of shared memory, every lane at its own places.
template <class T>
__global__ void salience_bwd_kernel(SalienceBwd a, std::int64_t tokens_of_block, T* parts) {
  extern __shared__ __align__(16) unsigned char shared[];
  T* sums = reinterpret_cast<T*>(shared);  // [warps, R + 1]
  const std::int64_t R = a.R;
  const T* v = static_cast<const T*>(a.v);
  T* own = sums + warp_of_block() * (R + 1);
  for (std::int64_t r = lane(); r < R; r += kWarp) own[r] = 0;
  T dkappa = 0;
  const std::int64_t begin = tokens_of_block * blockIdx.x;
  const std::int64_t end = min(a.N, begin + tokens_of_block);
  for (std::int64_t n = begin + warp_of_block(); n < end; n += kWarps) {
    const T* x = static_cast<const T*>(a.x) + n * R;
    T* dx = static_cast<T*>(a.dx) + n * R;
    const T ds = static_cast<const T*>(a.ds)[n];
    const T* p = prototype<T>(a, n);
    const Products<T> dot = products(x, v, p, R);
    const T turn = a.p ? ds * *static_cast<const T*>(a.kappa) * dot.inverse : T(0);
    const T along = dot.cosine * dot.inverse;
    for (std::int64_t r = lane(); r < R; r += kWarp) {
      dx[r] = ds * v[r] + turn * (p[r] - along * x[r]);
      own[r] += ds * x[r];
    }
    dkappa += ds * dot.cosine;
  }
  if (lane() == 0) own[R] = dkappa;
  __syncthreads();
  for (std::int64_t r = threadIdx.x; r <= R; r += kBlock) {
    T sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += sums[w * (R + 1) + r];
    parts[blockIdx.x * (R + 1) + r] = sum;
  }
}

template <class T>
__global__ void add_blocks_kernel(const T* parts, std::int64_t blocks, std::int64_t R, T* dv,
                                  T* dkappa) {
  const std::int64_t r = thread_unit();
  if (r > R) return;
  T sum = 0;
  for (std::int64_t b = 0; b < blocks; ++b) sum += parts[b * (R + 1) + r];
  if (r < R) {
    dv[r] = sum;
  } else if (dkappa) {
    *dkappa = sum;
  }
}

template <class T>
void salience_typed(const SalienceFwd& a) {
  launch("salience_fwd", salience_kernel<T>, warp_blocks(a.N), kBlock, 0, a);
}

template <class T>
void salience_bwd_typed(const SalienceBwd& a) {
  constexpr std::int64_t kFewestTokens = 64;  // of a block
  constexpr std::int64_t kMostBlocks = 512;
  const std::int64_t tokens = std::max(kFewestTokens, ceil_div(a.N, kMostBlocks));
  const std::int64_t blocks = ceil_div(a.N, tokens);
  const std::size_t row = static_cast<std::size_t>(a.R + 1) * sizeof(T);
  const Storage parts = scratch(static_cast<std::size_t>(blocks) * row);
  T* sums = static_cast<T*>(parts.data());
  allow_shared(salience_bwd_kernel<T>, kWarps * row);
  launch("salience_bwd", salience_bwd_kernel<T>, static_cast<unsigned>(blocks), kBlock,
         kWarps * row, a, tokens, sums);
  launch("salience_bwd", add_blocks_kernel<T>, thread_blocks(a.R + 1), kBlock, 0,
         static_cast<const T*>(sums), blocks, a.R, static_cast<T*>(a.dv),
         static_cast<T*>(a.dkappa));
}

}  // namespace

void install_salience_kernels() {
  salience_fwd.install(DeviceType::cuda, [](const SalienceFwd& a) {
    a.dtype == DType::f64 ? salience_typed<double>(a) : salience_typed<float>(a);
  });
  salience_bwd.install(DeviceType::cuda, [](const SalienceBwd& a) {
    a.dtype == DType::f64 ? salience_bwd_typed<double>(a) : salience_bwd_typed<float>(a);
  });
}

}  // namespace proteus::cuda
