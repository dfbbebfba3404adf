// Sums of rows by a list, on a GPU (tensor/ops/take.h): a warp to a row of the result.
#include "cuda/kernels.h"
#include "cuda/rows.cuh"
#include "tensor/ops/take.h"

namespace proteus::cuda {
namespace {

template <class T, int kPack>
__global__ void rows_sum_kernel(RowsSum a) {
  using A = accum_t<T>;
  const std::int64_t r = warp_unit();
  if (r >= a.rows) return;
  for (std::int64_t c = std::int64_t{kPack} * lane(); c < a.C; c += kPack * kWarp) {
    A sum[kPack] = {};
    for (std::int32_t i = a.begin[r]; i < a.begin[r + 1]; ++i) {
      const auto y = load_pack<kPack>(static_cast<const T*>(a.y) + a.place[i] * a.C + c);
      for (int j = 0; j < kPack; ++j) sum[j] += A(y[j]);
    }
    Pack<T, kPack> out;
    for (int j = 0; j < kPack; ++j) out[j] = T(sum[j]);
    store_pack(static_cast<T*>(a.out) + r * a.C + c, out);
  }
}

template <class T>
void rows_sum_typed(const RowsSum& a) {
  constexpr int kPack = kPackOf<T>;
  const bool packs = a.C % kPack == 0 && can_pack<T, kPack>(a.y, a.out);
  launch("rows_sum", packs ? rows_sum_kernel<T, kPack> : rows_sum_kernel<T, 1>, warp_blocks(a.rows),
         kBlock, 0, a);
}

}  // namespace

void install_take_kernels() {
  rows_sum.install(DeviceType::cuda, [](const RowsSum& a) {
    dispatch_float(a.dtype, "rows_sum",
                   [&](auto tag) { rows_sum_typed<typename decltype(tag)::type>(a); });
  });
}

}  // namespace proteus::cuda
