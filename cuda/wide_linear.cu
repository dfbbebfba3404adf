// tensor/ops/wide_linear.h on a GPU: products on the tensor cores in bf16, sums in f32. A number of
// f32 is the sum of three of bf16 (8 digits each, 24 in all), so that
//   x·Wᵀ = x·W₁ᵀ + x·W₂ᵀ + x·W₃ᵀ
// exactly: one product with the parts below each other. Backwards two parts of dy and of W suffice:
// dx = dy₁·W₁ + dy₂·W₁ + dy₁·W₂, one product of the parts side by side, is rounded to bf16, and
// dW = dy₁ᵀ·x + dy₂ᵀ·x.
#include "cuda/kernel.cuh"
#include "cuda/kernels.h"
#include "cuda/wide_linear.h"
#include "tensor/ops/gemm.h"
#include "tensor/ops/wide_linear.h"

namespace proteus::cuda {
namespace {

constexpr int kWeightParts = 3;
constexpr int kSlopeParts = 2;
constexpr int kTerms = 3;  // of dx

/// Which part of a number is written at which of its places.
template <int... kPart>
struct Parts {};

// to [places, rows, columns], or with kBeside [rows, places, columns].
template <bool kBeside, int... kPart>
__global__ void split_kernel(Parts<kPart...>, const float* from, bfloat16* to, std::int64_t rows,
                             std::int64_t columns) {
  constexpr int kPlaces = sizeof...(kPart);
  for (std::int64_t i = first_unit(); i < rows * columns; i += unit_step()) {
    const std::int64_t row = quotient(i, columns);
    const std::int64_t step = kBeside ? columns : rows * columns;
    bfloat16* at = to + (kBeside ? row * (kPlaces - 1) * columns + i : i);
    bfloat16 digits[kWeightParts];
    float rest = from[i];
#pragma unroll
    for (bfloat16& part : digits) {
      part = bfloat16(rest);
      rest -= static_cast<float>(part);
    }
    int place = 0;
    ((at[place++ * step] = digits[kPart]), ...);
  }
}

template <bool kBeside, int... kPart>
void split(const char* name, Parts<kPart...> parts, const void* from, const Storage& to,
           std::int64_t rows, std::int64_t columns) {
  launch(name, split_kernel<kBeside, kPart...>, blocks_for(rows * columns), kBlock, 0, parts,
         static_cast<const float*>(from), static_cast<bfloat16*>(to.data()), rows, columns);
}

// to [rows, columns] = Σ of from [rows, parts, columns], the small parts first.
template <int kParts>
__global__ void add_parts_kernel(const float* from, float* to, std::int64_t rows,
                                 std::int64_t columns) {
  for (std::int64_t i = first_unit(); i < rows * columns; i += unit_step()) {
    const std::int64_t row = quotient(i, columns);
    const float* parts = from + row * kParts * columns + (i - row * columns);
    float sum = 0;
#pragma unroll
    for (int part = kParts - 1; part >= 0; --part) sum += parts[part * columns];
    to[i] = sum;
  }
}

template <int kParts>
void add_parts(const char* name, const Storage& from, void* to, std::int64_t rows,
               std::int64_t columns) {
  launch(name, add_parts_kernel<kParts>, blocks_for(rows * columns), kBlock, 0,
         static_cast<const float*>(from.data()), static_cast<float*>(to), rows, columns);
}

std::size_t bytes(std::int64_t n, DType dtype) {
  return static_cast<std::size_t>(n) * size_of(dtype);
}

void split_fwd(const WideLinearFwd& a) {
  const std::int64_t wide = kWeightParts * a.N;
  const Storage weight = scratch(bytes(wide * a.K, DType::bf16));
  const Storage sums = scratch(bytes(a.M * wide, DType::f32));
  split<false>("wide_linear_fwd", Parts<0, 1, 2>{}, a.weight, weight, a.N, a.K);
  gemm_fwd(here(), {.a = a.x,
                    .b = weight.data(),
                    .c = sums.data(),
                    .M = a.M,
                    .N = wide,
                    .K = a.K,
                    .lda = a.K,
                    .ldb = a.K,
                    .ldc = wide,
                    .trans_b = true,
                    .wide_c = true,
                    .dtype = DType::bf16});
  add_parts<kWeightParts>("wide_linear_fwd", sums, a.y, a.M, a.N);
}

void split_bwd(const WideLinearBwd& a) {
  const std::int64_t wide = kSlopeParts * a.N;
  const std::int64_t terms = kTerms * a.N;
  const Storage slope = scratch(bytes(a.M * terms, DType::bf16));
  split<true>("wide_linear_bwd", Parts<0, 1, 0>{}, a.dy, slope, a.M, a.N);
  if (a.dx) {
    const Storage weight = scratch(bytes(terms * a.K, DType::bf16));
    split<false>("wide_linear_bwd", Parts<0, 0, 1>{}, a.weight, weight, a.N, a.K);
    gemm_fwd(here(), {.a = slope.data(),
                      .b = weight.data(),
                      .c = a.dx,
                      .M = a.M,
                      .N = a.K,
                      .K = terms,
                      .lda = terms,
                      .ldb = a.K,
                      .ldc = a.K,
                      .beta = a.add_dx ? 1.0 : 0.0,
                      .dtype = DType::bf16});
  }
  if (!a.dweight) return;
  const Storage sums = scratch(bytes(wide * a.K, DType::f32));
  gemm_fwd(here(), {.a = slope.data(),
                    .b = a.x,
                    .c = sums.data(),
                    .M = wide,
                    .N = a.K,
                    .K = a.M,
                    .lda = terms,
                    .ldb = a.K,
                    .ldc = a.K,
                    .trans_a = true,
                    .wide_c = true,
                    .dtype = DType::bf16});
  add_parts<kSlopeParts>("wide_linear_bwd", sums, a.dweight, 1, a.N * a.K);
}

void fwd(const WideLinearFwd& a) {
  if (hopper_wide_fits(a)) return wide_linear_hopper(a);
  if (a.dtype == DType::bf16) return split_fwd(a);
  gemm_fwd(here(), {.a = a.x,
                    .b = a.weight,
                    .c = a.y,
                    .M = a.M,
                    .N = a.N,
                    .K = a.K,
                    .lda = a.K,
                    .ldb = a.K,
                    .ldc = a.N,
                    .trans_b = true,
                    .dtype = a.dtype});
}

void bwd(const WideLinearBwd& a) {
  if (a.dtype == DType::bf16) return split_bwd(a);
  GemmFwd g{.a = a.dy,
            .b = a.weight,
            .c = a.dx,
            .M = a.M,
            .N = a.K,
            .K = a.N,
            .lda = a.N,
            .ldb = a.K,
            .ldc = a.K,
            .beta = a.add_dx ? 1.0 : 0.0,
            .dtype = a.dtype};
  if (a.dx) gemm_fwd(here(), g);
  g.b = a.x;
  g.c = a.dweight;
  g.beta = 0;
  g.M = a.N;
  g.K = a.M;
  g.trans_a = true;
  if (a.dweight) gemm_fwd(here(), g);
}

}  // namespace

void install_wide_linear_kernels() {
  wide_linear_fwd.install(DeviceType::cuda, fwd);
  wide_linear_bwd.install(DeviceType::cuda, bwd);
}

}  // namespace proteus::cuda
