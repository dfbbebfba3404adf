// tensor/ops/copy.h on a GPU: copies between strided layouts and types, fills, accumulation.
#include "cuda/copy_transposed.h"
#include "cuda/kernels.h"
#include "cuda/strided.cuh"
#include "tensor/ops/convert.h"
#include "tensor/ops/copy.h"

namespace proteus::cuda {
namespace {

template <class To, class From, int V>
__global__ void copy_kernel(To* dst, const From* src, const __grid_constant__ Units<2> units) {
  for (std::int64_t u = first_unit(); u < units.count; u += unit_step()) {
    const auto at = units.template at<V>(u);
    if constexpr (V == 1) {
      dst[at[0]] = convert<To>(src[at[1]]);
    } else {
      const auto from = load_run<V>(src + at[1], units.walk.inner_stride(1));
      Pack<To, V> to;
#pragma unroll
      for (int j = 0; j < V; ++j) to[j] = convert<To>(from[j]);
      store_pack(dst + at[0], to);
    }
  }
}

template <class T, int V>
__global__ void fill_kernel(T* dst, T value, const __grid_constant__ Units<1> units) {
  for (std::int64_t u = first_unit(); u < units.count; u += unit_step()) {
    const auto at = units.template at<V>(u);
    if constexpr (V == 1) {
      dst[at[0]] = value;
    } else {
      Pack<T, V> pack;
#pragma unroll
      for (int j = 0; j < V; ++j) pack[j] = value;
      store_pack(dst + at[0], pack);
    }
  }
}

template <class T, int V>
__global__ void accumulate_kernel(T* dst, const T* src, accum_t<T> scale,
                                  const __grid_constant__ Units<2> units) {
  using A = accum_t<T>;
  for (std::int64_t u = first_unit(); u < units.count; u += unit_step()) {
    const auto at = units.template at<V>(u);
    auto sum = load_run<V>(dst + at[0], units.walk.inner_stride(0));
    const auto from = load_run<V>(src + at[1], units.walk.inner_stride(1));
#pragma unroll
    for (int j = 0; j < V; ++j) sum[j] = T(A(sum[j]) + scale * A(from[j]));
    if constexpr (V == 1) {
      dst[at[0]] = sum[0];
    } else {
      store_pack(dst + at[0], sum);
    }
  }
}

// Whether the source can be read V at a time: contiguous, or one number repeated.
template <class T, int V>
bool source_fits(const Walk<2>& walk, const T* src) {
  return walk.inner_stride(1) == 0 || packs_fit<T, V>(walk, 1, src);
}

template <class To, class From, int V>
void copy_typed(const StridedCopy& a) {
  const auto walk = make_walk<2>({a.dst_layout, a.src_layout});
  To* dst = static_cast<To*>(a.dst) + a.dst_layout.offset;
  const From* src = static_cast<const From*>(a.src) + a.src_layout.offset;
  if (packs_fit<To, V>(walk, 0, dst) && source_fits<From, V>(walk, src)) {
    const Units<2> units(walk, V);
    launch("strided_copy", copy_kernel<To, From, V>, blocks_for(units.count), kBlock, 0, dst, src,
           units);
  } else if (!std::is_same_v<To, From> || !copy_transposed(dst, src, walk, sizeof(To))) {
    const Units<2> units(walk, 1);
    launch("strided_copy", copy_kernel<To, From, 1>, blocks_for(units.count), kBlock, 0, dst, src,
           units);
  }
}

// Without conversion only the size of an element counts.
void copy_bits(const StridedCopy& a) {
  switch (size_of(a.dst_dtype)) {
    case 1:
      return copy_typed<std::uint8_t, std::uint8_t, 16>(a);
    case 2:
      return copy_typed<std::uint16_t, std::uint16_t, 8>(a);
    case 4:
      return copy_typed<std::uint32_t, std::uint32_t, 4>(a);
    default:
      return copy_typed<std::uint64_t, std::uint64_t, 2>(a);
  }
}

void strided_copy_cuda(const StridedCopy& a) {
  if (a.dst_layout.shape.numel() == 0) return;
  if (a.dst_dtype == a.src_dtype) return copy_bits(a);
  constexpr int kElements = 4;  // of both types
  dispatch_all(a.dst_dtype, "copy", [&](auto to) {
    using To = typename decltype(to)::type;
    dispatch_all(a.src_dtype, "copy", [&](auto from) {
      using From = typename decltype(from)::type;
      if constexpr (!std::is_same_v<To, From>) copy_typed<To, From, kElements>(a);
    });
  });
}

void fill_cuda(const Fill& a) {
  if (a.layout.shape.numel() == 0) return;
  const auto walk = make_walk<1>({a.layout});
  dispatch_all(a.dtype, "fill", [&](auto tag) {
    using T = typename decltype(tag)::type;
    constexpr int V = kPackOf<T>;
    T* dst = static_cast<T*>(a.dst) + a.layout.offset;
    const T value = convert<T>(a.value);
    if (packs_fit<T, V>(walk, 0, dst)) {
      const Units<1> units(walk, V);
      launch("fill", fill_kernel<T, V>, blocks_for(units.count), kBlock, 0, dst, value, units);
    } else {
      const Units<1> units(walk, 1);
      launch("fill", fill_kernel<T, 1>, blocks_for(units.count), kBlock, 0, dst, value, units);
    }
  });
}

void accumulate_cuda(const Accumulate& a) {
  if (a.dst_layout.shape.numel() == 0) return;
  const auto walk = make_walk<2>({a.dst_layout, a.src_layout});
  dispatch_float(a.dtype, "add_", [&](auto tag) {
    using T = typename decltype(tag)::type;
    constexpr int V = kPackOf<T>;
    T* dst = static_cast<T*>(a.dst) + a.dst_layout.offset;
    const T* src = static_cast<const T*>(a.src) + a.src_layout.offset;
    const auto scale = static_cast<accum_t<T>>(a.scale);
    if (packs_fit<T, V>(walk, 0, dst) && source_fits<T, V>(walk, src)) {
      const Units<2> units(walk, V);
      launch("accumulate", accumulate_kernel<T, V>, blocks_for(units.count), kBlock, 0, dst, src,
             scale, units);
    } else {
      const Units<2> units(walk, 1);
      launch("accumulate", accumulate_kernel<T, 1>, blocks_for(units.count), kBlock, 0, dst, src,
             scale, units);
    }
  });
}

}  // namespace

void install_copy_kernels() {
  strided_copy.install(DeviceType::cuda, strided_copy_cuda);
  fill.install(DeviceType::cuda, fill_cuda);
  accumulate.install(DeviceType::cuda, accumulate_cuda);
}

}  // namespace proteus::cuda
