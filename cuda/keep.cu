// Which tokens enter at all, and the quantiles that its threshold follows (tensor/ops/select.h), on
// a GPU.
#include <cub/device/device_radix_sort.cuh>
#include <limits>

#include "cuda/kernels.h"
#include "cuda/rows.cuh"
#include "tensor/ops/select.h"

namespace proteus::cuda {
namespace {

template <class T>
__global__ void keep_counts_kernel(KeepCounts a) {
  const std::int64_t n = thread_unit();
  if (n >= a.N) return;
  const std::int64_t time = a.time ? a.time[n] : n % a.period;
  const bool enters =
      time < a.guard || static_cast<double>(static_cast<const T*>(a.scores)[n]) > a.tau;
  const std::int32_t count = a.count ? a.count[n] : static_cast<std::int32_t>(a.k);
  a.out[n] = enters ? count : 0;
}

template <class T>
void keep_counts_typed(const KeepCounts& a) {
  launch("keep_counts", keep_counts_kernel<T>, thread_blocks(a.N), kBlock, 0, a);
}

// One NaN, and one zero: by their bits a NaN with a sign would come first, and −0 before 0.
template <class T>
__global__ void sortable_kernel(const T* x, std::int64_t n, T* out) {
  for (std::int64_t i = first_unit(); i < n; i += unit_step()) {
    out[i] = x[i] == x[i] ? x[i] + T(0) : std::numeric_limits<T>::quiet_NaN();
  }
}

template <class T>
__global__ void ranks_kernel(OrderStatistics a, const T* sorted) {
  const int i = static_cast<int>(threadIdx.x);
  if (i < a.ranks) a.out[i] = static_cast<double>(sorted[a.rank[i]]);
}

template <class T>
void order_statistics_typed(const OrderStatistics& a) {
  const Storage space = scratch(static_cast<std::size_t>(2 * a.N) * sizeof(T));
  T* x = static_cast<T*>(space.data());
  T* sorted = x + a.N;
  launch("order_statistics", sortable_kernel<T>, blocks_for(a.N), kBlock, 0,
         static_cast<const T*>(a.x), a.N, x);
  const auto sort = [&](void* memory, std::size_t& bytes) {
    check(cub::DeviceRadixSort::SortKeys(memory, bytes, x, sorted, a.N, 0, sizeof(T) * 8,
                                         current_stream()),
          "cub::DeviceRadixSort::SortKeys");
  };
  std::size_t bytes = 0;
  sort(nullptr, bytes);
  const Storage memory = scratch(bytes);
  sort(memory.data(), bytes);
  launch("order_statistics", ranks_kernel<T>, 1, kWarp, 0, a, sorted);
}

}  // namespace

void install_keep_kernels() {
  keep_counts.install(DeviceType::cuda, [](const KeepCounts& a) {
    a.dtype == DType::f64 ? keep_counts_typed<double>(a) : keep_counts_typed<float>(a);
  });
  order_statistics.install(DeviceType::cuda, [](const OrderStatistics& a) {
    a.dtype == DType::f64 ? order_statistics_typed<double>(a) : order_statistics_typed<float>(a);
  });
}

}  // namespace proteus::cuda
