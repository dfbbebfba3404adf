// The KV bank on a GPU (tensor/ops/bank.h): a warp goes through a stream from its first entry to
// its last. All lanes decide alike; together they compare vectors.
#include "cuda/kernels.h"
#include "cuda/rows.cuh"
#include "tensor/ops/bank.h"

namespace proteus::cuda {
namespace {

// points_alike() of a warp.
template <class T>
__device__ bool warp_points_alike(const T* a, const T* b, std::int64_t D, double delta) {
  using A = accum_t<T>;
  A dot = 0;
  A square_a = 0;
  A square_b = 0;
  for (std::int64_t d = lane(); d < D; d += kWarp) {
    dot += A(a[d]) * A(b[d]);
    square_a += A(a[d]) * A(a[d]);
    square_b += A(b[d]) * A(b[d]);
  }
  dot = warp_sum(dot);
  square_a = warp_sum(square_a);
  square_b = warp_sum(square_b);
  return dot > static_cast<A>(delta) * sqrt(square_a * square_b);
}

template <class A>
__device__ std::int32_t largest(const A* values, std::int64_t count) {
  std::int32_t best = 0;
  for (std::int64_t i = 1; i < count; ++i) {
    if (values[i] > values[best]) best = static_cast<std::int32_t>(i);
  }
  return best;
}

template <class T>
__global__ void bank_select_kernel(BankSelect a) {
  using A = accum_t<T>;
  extern __shared__ __align__(16) unsigned char shared[];
  auto* bank = reinterpret_cast<BankEntry<A>*>(shared);  // [M]
  const std::int64_t stream = blockIdx.x;
  const std::int64_t base = a.offsets[stream];
  const auto row = [&](const void* values, std::int64_t entry) {
    return static_cast<const T*>(values) + (base + entry) * a.D;
  };
  std::int64_t held = 0;
  std::int64_t next = a.anchors;  // the first entry that was not yet offered
  for (std::int64_t i = 0; i < a.strides; ++i) {
    for (const std::int64_t end = a.first[stream * a.strides + i]; next < end; ++next) {
      const BankEntry<A> offer{
          next, largest(static_cast<const A*>(a.share) + (base + next) * a.gates, a.gates),
          static_cast<const A*>(a.score)[base + next]};
      const auto alike = [&](std::int64_t m) {
        const std::int64_t other = bank[m].entry;
        return warp_points_alike(row(a.k, next), row(a.k, other), a.D, a.rule.delta) &&
               warp_points_alike(row(a.v, next), row(a.v, other), a.D, a.rule.delta_v);
      };
      const std::int64_t slot =
          bank_slot(a.rule, a.M, bank, held, offer, stream / a.sequences, alike);
      __syncwarp();  // everybody has read the bank
      if (slot >= 0 && lane() == 0) bank[slot] = offer;
      __syncwarp();
      if (slot == held) ++held;
    }
    std::int32_t* out = a.slots + (stream * a.strides + i) * a.M;
    for (std::int64_t m = lane(); m < a.M; m += kWarp) {
      out[m] = m < held ? static_cast<std::int32_t>(base + bank[m].entry) : -1;
    }
  }
}

template <class T>
void bank_select_typed(const BankSelect& a) {
  if (a.streams == 0) return;
  const std::size_t bytes = static_cast<std::size_t>(a.M) * sizeof(BankEntry<accum_t<T>>);
  allow_shared(bank_select_kernel<T>, bytes);
  launch("bank_select", bank_select_kernel<T>, static_cast<unsigned>(a.streams), kWarp, bytes, a);
}

}  // namespace

void install_bank_kernels() {
  bank_select.install(DeviceType::cuda, [](const BankSelect& a) {
    dispatch_float(a.dtype, "bank_select",
                   [&](auto tag) { bank_select_typed<typename decltype(tag)::type>(a); });
  });
}

}  // namespace proteus::cuda
