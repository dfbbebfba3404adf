// A warp to a column of C, which is a row of the weight: its lanes read neighbouring packs of that
// row, once, and multiply them with every row of x. The order of the sums depends on K alone.
#include "cuda/gemm_few.h"
#include "cuda/rows.cuh"
#include "tensor/ops/gelu.h"

namespace proteus::cuda {
namespace {

constexpr int kMostRows = 4;
constexpr int kThreads = 128;

template <class T, class C, int kRows>
__global__ void __launch_bounds__(kThreads) few_kernel(const __grid_constant__ GemmFwd g) {
  constexpr int V = kPackOf<T>;
  const std::int64_t n = std::int64_t{blockIdx.x} * (kThreads / kWarp) + warp_of_block();
  if (n >= g.N) return;
  const T* w = static_cast<const T*>(g.b) + n * g.ldb;
  const T* x = static_cast<const T*>(g.a);
  float sum[kRows] = {};
#pragma unroll 4
  for (std::int64_t k = lane() * V; k < g.K; k += kWarp * V) {
    const auto factor = load_pack<V>(w + k);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const auto row = load_pack<V>(x + r * g.lda + k);
#pragma unroll
      for (int j = 0; j < V; ++j) sum[r] += float(row[j]) * float(factor[j]);
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) sum[r] = warp_sum(sum[r]);
  if (lane() != 0) return;
  const float bias = g.bias ? float(static_cast<const T*>(g.bias)[n]) : 0.0f;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const std::int64_t at = r * g.ldc + n;
    float value = sum[r] + bias;
    if (g.add) value += float(static_cast<const C*>(g.add)[at]);
    if (g.epilogue == GemmEpilogue::gelu) {
      if (g.pre) static_cast<T*>(g.pre)[at] = T(value);
      value = gelu_value(value);
    }
    static_cast<C*>(g.c)[at] = C(value);
  }
}

template <class T, class C>
void run(const GemmFwd& g) {
  const auto grid = static_cast<unsigned>(ceil_div(g.N, kThreads / kWarp));
  const auto with = [&](auto rows) {
    launch("gemm_fwd: few rows", few_kernel<T, C, rows()>, grid, kThreads, 0, g);
  };
  if (g.M == 1) return with(std::integral_constant<int, 1>{});
  if (g.M == 2) return with(std::integral_constant<int, 2>{});
  if (g.M == 3) return with(std::integral_constant<int, 3>{});
  with(std::integral_constant<int, kMostRows>{});
}

template <class T>
bool packs(const GemmFwd& g) {
  constexpr int V = kPackOf<T>;
  return g.K % V == 0 && g.lda % V == 0 && g.ldb % V == 0 && can_pack<T, V>(g.a, g.b);
}

}  // namespace

bool few_fits(const GemmFwd& g) {
  const bool linear = !g.trans_a && g.trans_b && g.batch == 1 && g.alpha == 1 && g.beta == 0 &&
                      g.epilogue != GemmEpilogue::gelu_grad;
  if (!linear || g.M > kMostRows || g.K == 0) return false;
  if (g.dtype == DType::bf16) return packs<bfloat16>(g);
  return g.dtype == DType::f32 && packs<float>(g);
}

void few_multiply(const GemmFwd& g) {
  if (g.dtype == DType::f32) return run<float, float>(g);
  g.wide_c ? run<bfloat16, float>(g) : run<bfloat16, bfloat16>(g);
}

}  // namespace proteus::cuda
