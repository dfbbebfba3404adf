#include "tensor/ops/copy.h"

#include <cstring>

#include "tensor/ops/convert.h"
#include "tensor/ops/strided.h"

namespace proteus {
namespace {

void strided_copy_cpu(const StridedCopy& a) {
  const auto walk = make_walk<2>({a.dst_layout, a.src_layout});
  dispatch_all(a.dst_dtype, "copy", [&](auto to) {
    using To = typename decltype(to)::type;
    dispatch_all(a.src_dtype, "copy", [&](auto from) {
      using From = typename decltype(from)::type;
      To* dst = static_cast<To*>(a.dst) + a.dst_layout.offset;
      const From* src = static_cast<const From*>(a.src) + a.src_layout.offset;
      const std::int64_t ds = walk.inner_stride(0);
      const std::int64_t ss = walk.inner_stride(1);
      walk_runs(walk, [&](const auto& at, std::int64_t n) {
        To* d = dst + at[0];
        const From* s = src + at[1];
        if constexpr (std::is_same_v<To, From>) {
          if (ds == 1 && ss == 1) {
            std::memcpy(static_cast<void*>(d), s, static_cast<std::size_t>(n) * sizeof(To));
            return;
          }
        }
        for (std::int64_t i = 0; i < n; ++i) d[i * ds] = convert<To>(s[i * ss]);
      });
    });
  });
}

void fill_cpu(const Fill& a) {
  const auto walk = make_walk<1>({a.layout});
  dispatch_all(a.dtype, "fill", [&](auto tag) {
    using T = typename decltype(tag)::type;
    T* dst = static_cast<T*>(a.dst) + a.layout.offset;
    const T value = convert<T>(a.value);
    const std::int64_t stride = walk.inner_stride(0);
    walk_runs(walk, [&](const auto& at, std::int64_t n) {
      T* d = dst + at[0];
      for (std::int64_t i = 0; i < n; ++i) d[i * stride] = value;
    });
  });
}

void accumulate_cpu(const Accumulate& a) {
  const auto walk = make_walk<2>({a.dst_layout, a.src_layout});
  dispatch_float(a.dtype, "add_", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accum_t<T>;
    T* dst = static_cast<T*>(a.dst) + a.dst_layout.offset;
    const T* src = static_cast<const T*>(a.src) + a.src_layout.offset;
    const A scale = static_cast<A>(a.scale);
    const std::int64_t ds = walk.inner_stride(0);
    const std::int64_t ss = walk.inner_stride(1);
    walk_runs(walk, [&](const auto& at, std::int64_t n) {
      T* d = dst + at[0];
      const T* s = src + at[1];
      if (ds == 1 && ss == 1) {
#pragma omp simd
        for (std::int64_t i = 0; i < n; ++i) d[i] = T(A(d[i]) + scale * A(s[i]));
      } else {
        for (std::int64_t i = 0; i < n; ++i) d[i * ds] = T(A(d[i * ds]) + scale * A(s[i * ss]));
      }
    });
  });
}

}  // namespace

Slot<StridedCopy> strided_copy{"strided_copy", strided_copy_cpu};
Slot<Fill> fill{"fill", fill_cpu};
Slot<Accumulate> accumulate{"accumulate", accumulate_cpu};

}  // namespace proteus
