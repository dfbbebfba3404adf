// Rotary position embedding of tensor/ops/rope.h on a GPU. A thread has one pair of channels of a
// row and rotates it in every head: the angle, in f64, is computed once.
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

// Channels (2·pair, 2·pair + 1) of every head of a row; kPacked: in one access, for an even D.
template <class T, bool kPacked>
__device__ void rotate_heads(const RopeArgs<T>& a, std::int64_t row, std::int64_t pair) {
  using A = accum_t<T>;
  const double angle =
      static_cast<double>(position_of(a, row)) *
      std::pow(a.base, -2.0 * static_cast<double>(pair) / static_cast<double>(a.R));
  double sine = 0;
  double cosine = 0;
  sincos(angle, &sine, &cosine);
  const A c = static_cast<A>(cosine);
  const A s = static_cast<A>(a.inverse ? -sine : sine);
  for (std::int64_t h = 0; h < a.rotated; ++h) {
    const std::int64_t at = (row * a.heads + h) * a.D + 2 * pair;
    Pack<T, 2> p;
    if constexpr (kPacked) {
      p = load_pack<2>(a.x + at);
    } else {
      p[0] = a.x[at];
      p[1] = a.x[at + 1];
    }
    const A u = A(p[0]);
    const A v = A(p[1]);
    p[0] = T(u * c - v * s);
    p[1] = T(u * s + v * c);
    if constexpr (kPacked) {
      store_pack(a.y + at, p);
    } else {
      a.y[at] = p[0];
      a.y[at + 1] = p[1];
    }
  }
}

template <class T, bool kPacked>
__global__ void rope_kernel(const RopeArgs<T> a) {
  const std::int64_t half = a.R / 2;
  for (std::int64_t u = first_unit(); u < a.rows * half; u += unit_step()) {
    const std::int64_t row = quotient(u, half);
    rotate_heads<T, kPacked>(a, row, u - row * half);
  }
}

// Channels [from, D) of heads [first, last) of every row, as they are.
template <class T>
__global__ void copy_channels_kernel(const RopeArgs<T> a, std::int64_t first, std::int64_t last,
                                     std::int64_t from) {
  const std::int64_t width = a.D - from;
  const std::int64_t each = (last - first) * width;
  for (std::int64_t u = first_unit(); u < a.rows * each; u += unit_step()) {
    const std::int64_t row = quotient(u, each);
    const std::int64_t h = quotient(u - row * each, width);
    const std::int64_t channel = u - row * each - h * width;
    const std::int64_t at = (row * a.heads + first + h) * a.D + from + channel;
    a.y[at] = a.x[at];
  }
}

template <class T>
void copy_channels(const RopeArgs<T>& a, std::int64_t first, std::int64_t last, std::int64_t from) {
  const std::int64_t n = a.rows * (last - first) * (a.D - from);
  if (n == 0) return;
  launch("rope_fwd", copy_channels_kernel<T>, blocks_for(n), kBlock, 0, a, first, last, from);
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
    if (r.R > 0 && r.rotated > 0) {
      const unsigned grid = blocks_for(r.rows * (r.R / 2));
      if (r.D % 2 == 0 && can_pack<T, 2>(a.x, a.y)) {
        launch("rope_fwd", rope_kernel<T, true>, grid, kBlock, 0, a);
      } else {
        launch("rope_fwd", rope_kernel<T, false>, grid, kBlock, 0, a);
      }
    }
    copy_channels(a, 0, r.rotated, r.R);
    copy_channels(a, r.rotated, r.heads, 0);
  });
}

}  // namespace

void install_rope_kernels() { rope_fwd.install(DeviceType::cuda, rope_cuda); }

}  // namespace proteus::cuda
