// Rotary position embedding of tensor/ops/rope.h on a GPU, in one pass. A thread has a few
// neighbouring channels of a row and rotates or copies them in every head: their angles are
// computed once, in turns and in f64, so that only what is left after whole turns is rounded.
#include <cmath>

#include "cuda/kernel.cuh"
#include "cuda/kernels.h"
#include "tensor/ops/rope.h"

namespace proteus::cuda {
namespace {

template <class T>
struct RopeArgs {
  const T* x;
  T* y;
  const std::int32_t* positions;
  std::int64_t period, offset, rows, heads, rotated, D, R;
  double base;
  bool inverse;
};

template <class T>
__device__ std::int64_t position_of(const RopeArgs<T>& a, std::int64_t row) {
  if (a.positions) return a.positions[row];
  return row - quotient(row, a.period) * a.period + a.offset;
}

template <class A>
struct Rotation {
  A cosine = 1, sine = 0;
};

__device__ inline void sincos_half_turns(double x, double* s, double* c) { sincospi(x, s, c); }
__device__ inline void sincos_half_turns(float x, float* s, float* c) { sincospif(x, s, c); }

/// By so many turns.
template <class A>
__device__ Rotation<A> rotation_by(double turns, bool inverse) {
  const double quarters = 4 * turns;
  const double whole = rint(quarters);
  A s;
  A c;
  sincos_half_turns(static_cast<A>((quarters - whole) / 2), &s, &c);
  const int side = static_cast<int>(static_cast<long long>(whole) & 3);
  if (side & 1) {
    const A before = c;
    c = -s;
    s = before;
  }
  if (side & 2) {
    c = -c;
    s = -s;
  }
  return {c, inverse ? -s : s};
}

// turns [R/2], in shared memory: of every pair at position 1. kWhole: rows are whole packs.
template <class T, int kPack, bool kWhole>
__global__ void rope_kernel(const RopeArgs<T> a) {
  using A = accum_t<T>;
  constexpr double kOneTurn = 6.283185307179586;
  extern __shared__ double turns[];
  const std::int64_t half = a.rotated > 0 ? a.R / 2 : 0;
  for (std::int64_t i = threadIdx.x; i < half; i += blockDim.x) {
    turns[i] =
        std::pow(a.base, -2.0 * static_cast<double>(i) / static_cast<double>(a.R)) / kOneTurn;
  }
  __syncthreads();
  const std::int64_t packs = (a.D + kPack - 1) / kPack;
  for (std::int64_t u = first_unit(); u < a.rows * packs; u += unit_step()) {
    const std::int64_t row = quotient(u, packs);
    const std::int64_t channel = (u - row * packs) * kPack;
    const std::int64_t inside = a.D - channel;
    const auto position = static_cast<double>(position_of(a, row));
    Rotation<A> rotation[kPack / 2];
#pragma unroll
    for (int i = 0; i < kPack / 2; ++i) {
      const std::int64_t pair = channel / 2 + i;
      if (pair < half) rotation[i] = rotation_by<A>(position * turns[pair], a.inverse);
    }
    const std::int64_t heads = a.x == a.y ? a.rotated : a.heads;  // in place, the others are there
    for (std::int64_t h = 0; h < heads; ++h) {
      const std::int64_t at = (row * a.heads + h) * a.D + channel;
      Pack<T, kPack> p;
      if constexpr (kWhole) {
        p = load_pack<kPack>(a.x + at);
      } else {
        for (int i = 0; i < kPack; ++i) p[i] = i < inside ? a.x[at + i] : T(0);
      }
#pragma unroll
      for (int i = 0; i < kPack / 2; ++i) {
        if (h >= a.rotated || channel / 2 + i >= half) continue;
        const A u0 = A(p[2 * i]);
        const A u1 = A(p[2 * i + 1]);
        p[2 * i] = T(u0 * rotation[i].cosine - u1 * rotation[i].sine);
        p[2 * i + 1] = T(u0 * rotation[i].sine + u1 * rotation[i].cosine);
      }
      if constexpr (kWhole) {
        store_pack(a.y + at, p);
      } else {
        for (int i = 0; i < kPack; ++i) {
          if (i < inside) a.y[at + i] = p[i];
        }
      }
    }
  }
}

void rope_cuda(const RopeFwd& r) {
  if (r.rows * r.heads * r.D == 0) return;
  dispatch_float(r.dtype, "rope_fwd", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const RopeArgs<T> a{static_cast<const T*>(r.x),
                        static_cast<T*>(r.y),
                        r.positions,
                        r.period,
                        r.offset,
                        r.rows,
                        r.heads,
                        r.rotated,
                        r.D,
                        r.R,
                        r.base,
                        r.inverse};
    constexpr int kPack = kPackOf<T>;
    const bool packs = r.D % kPack == 0 && can_pack<T, kPack>(a.x, a.y);
    const unsigned grid = blocks_for(r.rows * ceil_div(r.D, packs ? kPack : 2));
    const auto shared = static_cast<std::size_t>(r.R / 2) * sizeof(double);
    launch("rope_fwd", packs ? rope_kernel<T, kPack, true> : rope_kernel<T, 2, false>, grid, kBlock,
           shared, a);
  });
}

}  // namespace

void install_rope_kernels() { rope_fwd.install(DeviceType::cuda, rope_cuda); }

}  // namespace proteus::cuda
