// The step of the prototypes on a GPU (tensor/ops/prototypes.h). One block adds up N, then a warp
// takes each gate.
#include "cuda/kernels.h"
#include "cuda/rows.cuh"
#include "tensor/ops/prototypes.h"

namespace proteus::cuda {
namespace {

// N, and the sum over all gates.
template <class T>
__global__ void uses_kernel(PrototypesStep a, double* total) {
  const T keep = static_cast<T>(a.keep);
  const T take = static_cast<T>(1 - a.keep);
  T* N = static_cast<T*>(a.N);
  double sum = 0;
  for (std::int64_t g = threadIdx.x; g < a.G; g += kBlock) {
    N[g] = keep * N[g] + take * static_cast<const T*>(a.weight_sum)[g];
    sum += static_cast<double>(N[g]);
  }
  sum = group_sum<kBlock>(sum);
  if (threadIdx.x == 0) *total = sum;
}

template <class T>
__global__ void gates_kernel(PrototypesStep a, const double* total) {
  const std::int64_t g = warp_unit();
  if (g >= a.G) return;
  const T keep = static_cast<T>(a.keep);
  const T take = static_cast<T>(1 - a.keep);
  T* P = static_cast<T*>(a.P) + g * a.R;
  T* p = static_cast<T*>(a.p) + g * a.R;
  const T* weighted = static_cast<const T*>(a.weighted_sum) + g * a.R;
  double square = 0;
  for (std::int64_t r = lane(); r < a.R; r += kWarp) {
    P[r] = keep * P[r] + take * weighted[r];
    square += static_cast<double>(P[r]) * static_cast<double>(P[r]);
  }
  square = warp_sum(square);
  const double scale = 1 / sqrt(square);
  for (std::int64_t r = lane(); square > 0 && r < a.R; r += kWarp) {
    p[r] = static_cast<T>(static_cast<double>(P[r]) * scale);
  }
  if (lane() != 0) return;
  const double threshold = a.dead_share * (*total / static_cast<double>(a.G));
  const auto N = static_cast<double>(static_cast<const T*>(a.N)[g]);
  a.starving[g] = N < threshold ? a.starving[g] + 1 : 0;
}

template <class T>
void step_typed(const PrototypesStep& a) {
  const Storage space = scratch(sizeof(double));
  auto* total = static_cast<double*>(space.data());
  launch("prototypes_step", uses_kernel<T>, 1, kBlock, 0, a, total);
  launch("prototypes_step", gates_kernel<T>, warp_blocks(a.G), kBlock, 0, a, total);
}

}  // namespace

void install_prototypes_kernels() {
  prototypes_step.install(DeviceType::cuda, [](const PrototypesStep& a) {
    a.dtype == DType::f64 ? step_typed<double>(a) : step_typed<float>(a);
  });
}

}  // namespace proteus::cuda
