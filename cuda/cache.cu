// Caches of decoding on a GPU (tensor/ops/cache.h): entries come in, a warp to each, and the plain
// rung of attention over them, a warp to a query.
#include "cuda/cache.cuh"
#include "cuda/cache.h"
#include "cuda/kernels.h"
#include "tensor/error.h"

namespace proteus::cuda {
namespace {

template <class T>
__device__ void put_row(const CacheRows& c, void* rows, float* scales, std::int64_t place,
                        const T* x) {
  using A = accum_t<T>;
  if (!scales) {
    for (std::int64_t d = lane(); d < c.D; d += kWarp) {
      static_cast<T*>(rows)[place * c.D + d] = x[d];
    }
    return;
  }
  A largest = 0;
  for (std::int64_t d = lane(); d < c.D; d += kWarp) {
    largest = Larger{}(largest, static_cast<A>(std::abs(A(x[d]))));
  }
  largest = warp_reduce(largest, Larger{});
  const A factor = code_factor(largest);
  for (std::int64_t d = lane(); d < c.D; d += kWarp) {
    static_cast<std::int8_t*>(rows)[place * c.D + d] =
        static_cast<std::int8_t>(code_of(A(x[d]), factor));
  }
  if (lane() == 0) scales[place] = code_scale(largest);
}

template <class T>
__global__ void append_kernel(const __grid_constant__ CacheAppend a) {
  using A = accum_t<T>;
  const CacheRows& c = a.cache;
  const std::int64_t i = warp_unit();
  if (i >= a.items.B * a.items.n) return;
  const CacheItem item(a.items, c.H, i);
  if (item.stream < 0) return;
  const std::int32_t entries = c.entries[item.stream];
  const std::int64_t place = item.stream * c.capacity + cache_row(entries, c.anchors, c.capacity);
  put_row(c, c.k, c.k_scale, place, static_cast<const T*>(a.k) + item.at(a.items, a.k_stride, c.D));
  put_row(c, c.v, c.v_scale, place, static_cast<const T*>(a.v) + item.at(a.items, a.v_stride, c.D));
  __syncwarp();  // everybody has read the number of entries
  if (lane() != 0) return;
  if (c.bias) static_cast<A*>(c.bias)[place] = static_cast<const A*>(a.bias)[item.row];
  c.entries[item.stream] = entries + 1;
}

__global__ void advance_kernel(Advance a) {
  const std::int64_t i = thread_unit();
  if (i < a.n) ++a.counters[i];
}

/// A query spread over a warp, lane l with the elements l, l + 32, …: itself, or its codes.
template <class T, int kPer, bool kCodes>
struct PlainQuery {
  using A = accum_t<T>;
  A x[kPer];
  A scale = 1;

  __device__ PlainQuery(const T* q, std::int64_t D) {
    A largest = 0;
#pragma unroll
    for (int r = 0; r < kPer; ++r) {
      const std::int64_t d = lane() + kWarp * r;
      x[r] = d < D ? A(q[d]) : A(0);
      largest = Larger{}(largest, static_cast<A>(std::abs(x[r])));
    }
    if constexpr (kCodes) {
      largest = warp_reduce(largest, Larger{});
      const A factor = code_factor(largest);
      scale = A(code_scale(largest));
#pragma unroll
      for (int r = 0; r < kPer; ++r) x[r] = A(code_of(x[r], factor));
    }
  }
  /// Sums of products of codes are whole numbers below 2^24: exact.
  __device__ A dot(const CacheRows& c, std::int64_t place) const {
    A sum = 0;
#pragma unroll
    for (int r = 0; r < kPer; ++r) {
      const std::int64_t d = lane() + kWarp * r;
      if (d >= c.D) continue;
      if constexpr (kCodes) {
        sum += x[r] * A(static_cast<const std::int8_t*>(c.k)[place * c.D + d]);
      } else {
        sum += x[r] * A(static_cast<const T*>(c.k)[place * c.D + d]);
      }
    }
    sum = warp_sum(sum);
    if constexpr (kCodes) return scale * A(c.k_scale[place]) * sum;
    return sum;
  }
};

template <class T, int kPer, bool kCodes>
__global__ void plain_kernel(const __grid_constant__ CacheAttend a) {
  using A = accum_t<T>;
  constexpr A kNothing = -std::numeric_limits<A>::infinity();
  const CacheRows& c = a.cache;
  const std::int64_t i = warp_unit();
  if (i >= a.items.B * a.items.n) return;
  const CacheItem item(a.items, c.H, i);
  if (item.stream < 0) return;
  const SeenRows seen(c, item.stream, a.windows);
  const PlainQuery<T, kPer, kCodes> q(
      static_cast<const T*>(a.q) + item.at(a.items, a.q_stride, c.D), c.D);
  const A scale = A(1) / sqrt(static_cast<A>(c.D));
  const bool with_sink = a.sink && a.sink_weight > 0;
  A top = with_sink ? static_cast<const A*>(a.sink)[item.head] : kNothing;
  A sum = with_sink ? static_cast<A>(a.sink_weight) : A(0);
  A out[kPer] = {};
  for (int e = 0; e < seen.count; ++e) {
    const std::int64_t place = seen(e);
    const A bias = c.bias ? static_cast<const A*>(c.bias)[place] : A(0);
    const A score = scale * q.dot(c, place) + bias;
    const A before = top;
    top = Larger{}(top, score);
    if (top == kNothing) continue;
    const A shrink = exp(before - top);
    A weight = exp(score - top);
    sum = sum * shrink + weight;
    if constexpr (kCodes) weight *= A(c.v_scale[place]);
#pragma unroll
    for (int r = 0; r < kPer; ++r) {
      const std::int64_t d = lane() + kWarp * r;
      if (d >= c.D) continue;
      A v;
      if constexpr (kCodes) {
        v = A(static_cast<const std::int8_t*>(c.v)[place * c.D + d]);
      } else {
        v = A(static_cast<const T*>(c.v)[place * c.D + d]);
      }
      out[r] = out[r] * shrink + weight * v;
    }
  }
  T* to = static_cast<T*>(a.out) + item.row * c.D;
#pragma unroll
  for (int r = 0; r < kPer; ++r) {
    const std::int64_t d = lane() + kWarp * r;
    if (d < c.D) to[d] = T(sum > 0 ? out[r] / sum : A(0));
  }
}

template <class T, int kPer>
void run_plain(const CacheAttend& a) {
  const unsigned grid = warp_blocks(a.items.B * a.items.n);
  launch("cache_attend: plain",
         a.cache.k_scale ? plain_kernel<T, kPer, true> : plain_kernel<T, kPer, false>, grid, kBlock,
         0, a);
}

constexpr CacheAttendRung kRungs[] = {
    {"plain", cache_plain_fits, cache_attend_plain},
    {"split", cache_split_fits, cache_attend_split},
};

void attend(const CacheAttend& a) {
  if (a.items.B * a.items.n == 0) return;
  for (auto rung = std::rbegin(kRungs); rung != std::rend(kRungs); ++rung) {
    if (rung->fits(a)) return rung->run(a);
  }
  throw DeviceError("cache_attend: cuda: heads of at most 256 are supported, got " +
                    std::to_string(a.cache.D));
}

}  // namespace

std::span<const CacheAttendRung> cache_attend_rungs() { return kRungs; }

bool cache_plain_fits(const CacheAttend& a) { return a.cache.D <= 8 * kWarp; }

void cache_attend_plain(const CacheAttend& a) {
  dispatch_float(a.dtype, "cache_attend", [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (a.cache.D <= kWarp) return run_plain<T, 1>(a);
    if (a.cache.D <= 2 * kWarp) return run_plain<T, 2>(a);
    run_plain<T, 8>(a);
  });
}

void install_cache_kernels() {
  cache_append.install(DeviceType::cuda, [](const CacheAppend& a) {
    dispatch_float(a.dtype, "cache_append", [&](auto tag) {
      if (a.items.B * a.items.n == 0) return;
      launch("cache_append", append_kernel<typename decltype(tag)::type>,
             warp_blocks(a.items.B * a.items.n), kBlock, 0, a);
    });
  });
  cache_attend.install(DeviceType::cuda, attend);
  advance_counters.install(DeviceType::cuda, [](const Advance& a) {
    launch("advance_counters", advance_kernel, thread_blocks(a.n), kBlock, 0, a);
  });
}

}  // namespace proteus::cuda
