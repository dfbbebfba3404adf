// The gradient of a weight, dW = dyᵀ·x, for f32 on the CPU. Private to the GEMM kernels.
//
// C is small and K, the tokens, is long: C is cut into tiles, K into chunks of its own, and the
// library behind gemm_backend.h multiplies a tile (measured: 80-95% of the FMA peak with oneDNN).
#pragma once

#include "tensor/ops/gemm.h"

namespace proteus {

/// Whether gemm_weight computes this product: f32 aᵀ·b without bias, epilogue or scale, large
/// enough to be worth it.
bool is_weight_product(const GemmFwd& g);

/// C = aᵀ·b + beta·C. Tiles of C, and chunks of K whose sums are added in order, are cut by shape
/// alone: the bits do not depend on the number of threads.
void gemm_weight(const GemmFwd& g);

}  // namespace proteus
