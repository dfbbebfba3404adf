// The output layer with its cross-entropy (tensor/ops/loss.h) on a GPU. In bf16 on Hopper the
// product writes exponentials instead of logits (cuda/exp_product.h), relative to the logit of the
// target, which is known before:
//   e_v = exp(z_v − z_t),  s = Σ_v e_v,  loss = log s,  dz_v = scale/s·(e_v − [v = t]·s)
// So one element of a row, that of its target, makes its exponentials its gradient but for a
// factor, and the products that follow get by without another pass: dh = f ⊙ (e·W) and
// dW = eᵀ·(f ⊙ h) with f = scale/s. (Gradients in chunks: Liger-Kernel, arXiv:2410.10989; logits
// that stay on the chip, but are made twice: Cut Cross-Entropy, arXiv:2411.09009.)
#include <cmath>

#include "cuda/column_sums.cuh"
#include "cuda/exp_product.h"
#include "cuda/kernels.h"
#include "cuda/row_softmax.cuh"
#include "tensor/ops/elementwise.h"
#include "tensor/ops/loss.h"

namespace proteus::cuda {
namespace {

using bf16 = bfloat16;

// Sums up to here leave room for their products in bf16 and f32; a target that is farther from the
// best word, by 60 nats, has its row made again.
constexpr float kLargestSum = 1e26f;

/// Σ_c h[c]·w[c] by a warp.
__device__ float warp_dot(const bf16* h, const bf16* w, std::int64_t C) {
  constexpr int V = kPackOf<bf16>;
  float sum = 0;
  for (std::int64_t c = threadIdx.x % kWarp * V; c < C; c += kWarp * V) {
    const auto a = load_pack<V>(h + c);
    const auto b = load_pack<V>(w + c);
#pragma unroll
    for (int j = 0; j < V; ++j) sum += static_cast<float>(a[j]) * static_cast<float>(b[j]);
  }
  return warp_reduce(sum, Plus{});
}

struct Rows {
  const bf16* h;
  const bf16* w;
  const std::int64_t* target;
  double* loss;
  bf16* e;  // null: losses only
  float* factor;
  std::int64_t rows, V, C, e_step;
  float scale;
};

__global__ void target_logits_kernel(const Rows a, float* logits) {
  using Groups = RowGroups<kWarp>;
  for (std::int64_t row = Groups::first(); row < a.rows; row += Groups::step()) {
    const float z = warp_dot(a.h + row * a.C, a.w + a.target[row] * a.C, a.C);
    if (Groups::lane() == 0) logits[row] = z;
  }
}

struct FinishRow {
  Rows a;

  __device__ void operator()(std::int64_t, std::int64_t, std::int64_t row,
                             const float (&sum)[1]) const {
    a.loss[row] = static_cast<double>(std::log(sum[0]));
    a.factor[row] = a.scale / sum[0];
    if (a.e) a.e[row * a.e_step + a.target[row]] = bf16(1.0f - sum[0]);
  }
};

// Rows whose sum is too large, relative to their largest logit instead; a block each. There are
// none but where a model has gone astray.
__global__ void __launch_bounds__(kBlock) distant_rows_kernel(const Rows a) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  constexpr int kWarps = kBlock / kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const bool first = threadIdx.x % kWarp == 0;
  for (std::int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
    if (!(a.factor[row] < a.scale / kLargestSum)) continue;
    const bf16* h = a.h + row * a.C;
    const std::int64_t target = a.target[row];
    float top = -kInf;
    float sum = 0;
    for (std::int64_t v = warp; v < a.V; v += kWarps) {
      const float z = warp_dot(h, a.w + v * a.C, a.C);
      if (z > top) {
        sum *= shifted_exp(top, z);
        top = z;
      }
      sum += shifted_exp(z, top);
    }
    const float all = group_reduce<kBlock>(top, Larger{}, -kInf);
    sum = group_sum<kBlock>(first ? sum * shifted_exp(top, all) : 0.0f);
    const float picked = warp_dot(h, a.w + target * a.C, a.C);
    if (threadIdx.x == 0) {
      a.loss[row] = static_cast<double>(std::log(sum) + (all - picked));
      a.factor[row] = a.scale / sum;
    }
    if (!a.e) continue;
    for (std::int64_t v = warp; v < a.V; v += kWarps) {
      const float e = vmath::exp(warp_dot(h, a.w + v * a.C, a.C) - all);
      if (first) a.e[row * a.e_step + v] = bf16(v == target ? e - sum : e);
    }
  }
}

void scale_rows(const LinearCrossEntropy& c, const void* from, const float* factor, void* to) {
  scale_rows_fwd(here(), {.x = from,
                          .r = factor,
                          .y = to,
                          .factor = {},
                          .M = c.rows,
                          .D = c.C,
                          .dtype = DType::bf16,
                          .r_dtype = DType::f32});
}

void by_exponentials(const LinearCrossEntropy& c, ExpProduct product) {
  constexpr const char* kName = "linear_cross_entropy";
  const std::int64_t tiles = ceil_div(c.V, kExpColumns);
  const bool gradients = c.dh || c.dw;
  const std::int64_t kept = gradients ? c.rows * product.e_step : 0;
  const Storage e = scratch(static_cast<std::size_t>(kept) * sizeof(bf16));
  const Storage logits = scratch(static_cast<std::size_t>(c.rows) * sizeof(float));
  const Storage sums = scratch(static_cast<std::size_t>(tiles * c.rows) * sizeof(float));
  const Storage factor = scratch(static_cast<std::size_t>(c.rows) * sizeof(float));
  const Rows rows{static_cast<const bf16*>(c.h),
                  static_cast<const bf16*>(c.w),
                  c.target,
                  c.loss,
                  gradients ? static_cast<bf16*>(e.data()) : nullptr,
                  static_cast<float*>(factor.data()),
                  c.rows,
                  c.V,
                  c.C,
                  product.e_step,
                  static_cast<float>(c.scale)};
  product.shift = static_cast<float*>(logits.data());
  product.e = rows.e;
  product.sums = static_cast<float*>(sums.data());
  launch(kName, target_logits_kernel, RowGroups<kWarp>::blocks(c.rows), kBlock, 0, rows,
         static_cast<float*>(logits.data()));
  exp_product(product);
  sum_chunks<float, 1>(kName, 1, tiles, c.rows, product.sums, FinishRow{rows});
  launch(kName, distant_rows_kernel, blocks_for(c.rows, 1), kBlock, 0, rows);
  if (c.dh) {
    gemm_fwd(here(), hidden_gradient(c, rows.e, rows.e_step));
    scale_rows(c, c.dh, rows.factor, c.dh);
  }
  if (c.dw) {
    const Storage scaled = scratch(static_cast<std::size_t>(c.rows * c.C) * sizeof(bf16));
    scale_rows(c, c.h, rows.factor, scaled.data());
    gemm_fwd(here(), weight_gradient(c, rows.e, rows.e_step, scaled.data()));
  }
}

void linear_cross_entropy_cuda(const LinearCrossEntropy& c) {
  if (c.rows == 0) return;
  const ExpProduct product{.h = c.h,
                           .w = c.w,
                           .rows = c.rows,
                           .V = c.V,
                           .C = c.C,
                           .e_step = ceil_div(c.V, kExpColumns) * kExpColumns};
  if (c.dtype == DType::bf16 && exp_product_fits(product)) return by_exponentials(c, product);
  linear_cross_entropy_by_logits(here(), c);
}

}  // namespace

void install_linear_loss_kernels() {
  linear_cross_entropy.install(DeviceType::cuda, linear_cross_entropy_cuda);
}

}  // namespace proteus::cuda
