// The gradient of a weight, dW = dyᵀ·x, for f32 on the CPU. Private to the GEMM kernels.
//
// C is small and K, the tokens, is long. Rows of both operands are contiguous in the direction of
// C, so the microkernel reads them as they are, where a library's product first transposes one of
// them for every tile (measured: 40-50% of the FMA peak at width 128, against 70-80% here).
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
