// Products of few rows, as decoding has them: bound by reading the weight. Private to
// cuda/gemm*.cu.
#pragma once

#include "tensor/ops/gemm.h"

namespace proteus::cuda {

/// Whether C = op(A)·op(B) is x·Wᵀ of at most four rows x, in f32 or bf16 and in whole packs.
bool few_fits(const GemmFwd& g);
/// The product and its epilogue.
void few_multiply(const GemmFwd& g);

}  // namespace proteus::cuda
