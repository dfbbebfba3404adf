// Dropout of tensor/ops/dropout.h on a GPU: the masks of the CPU, drawn four at a time from Philox.
#include "cuda/graph.h"
#include "cuda/kernel.cuh"
#include "cuda/kernels.h"
#include "tensor/ops/dropout.h"
#include "tensor/rng.h"

namespace proteus::cuda {
namespace {

constexpr int kDraws = 4;  // numbers of one Philox counter

template <class T>
struct DropoutArgs {
  const T* x;
  const T* residual;
  T* y;
  std::int64_t n;
  std::uint32_t threshold;
  accum_t<T> scale;
  RngKey key;
  const std::uint64_t* later;  // added to the key's stream, unless null
};

template <class T>
__device__ T dropped(const DropoutArgs<T>& a, T x, T residual, std::uint32_t draw) {
  using A = accum_t<T>;
  const A kept = draw >= a.threshold ? A(x) * a.scale : A(0);
  return a.residual ? T(A(residual) + kept) : T(kept);
}

// One counter gives the draws of four elements.
template <class T, bool kPacked>
__global__ void dropout_kernel(const DropoutArgs<T> a) {
  const std::int64_t counters = (a.n + kDraws - 1) / kDraws;
  const std::uint64_t stream = a.key.stream + (a.later ? *a.later : 0);
  for (std::int64_t u = first_unit(); u < counters; u += unit_step()) {
    const Philox4 draw = philox(a.key.seed, static_cast<std::uint64_t>(u), stream);
    const std::int64_t i = u * kDraws;
    if (kPacked && i + kDraws <= a.n) {
      auto x = load_pack<kDraws>(a.x + i);
      Pack<T, kDraws> residual;
      if (a.residual) residual = load_pack<kDraws>(a.residual + i);
#pragma unroll
      for (int j = 0; j < kDraws; ++j) x[j] = dropped(a, x[j], residual[j], draw.v[j]);
      store_pack(a.y + i, x);
    } else {
#pragma unroll
      for (int j = 0; j < kDraws; ++j) {
        if (i + j >= a.n) break;
        a.y[i + j] = dropped(a, a.x[i + j], a.residual ? a.residual[i + j] : T(0.0f), draw.v[j]);
      }
    }
  }
}

void dropout_cuda(const DropoutFwd& d) {
  if (d.n == 0) return;
  dispatch_float(d.dtype, "dropout_fwd", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const DropoutArgs<T> a{static_cast<const T*>(d.x),
                           static_cast<const T*>(d.residual),
                           static_cast<T*>(d.y),
                           d.n,
                           d.threshold,
                           static_cast<accum_t<T>>(d.scale),
                           d.key,
                           recorded_streams()};
    const unsigned grid = blocks_for(ceil_div(d.n, kDraws));
    if (can_pack<T, kDraws>(a.x, a.residual, a.y)) {
      launch("dropout_fwd", dropout_kernel<T, true>, grid, kBlock, 0, a);
    } else {
      launch("dropout_fwd", dropout_kernel<T, false>, grid, kBlock, 0, a);
    }
  });
}

}  // namespace

void install_dropout_kernels() { dropout_fwd.install(DeviceType::cuda, dropout_cuda); }

}  // namespace proteus::cuda
