// The one private seam between the GEMM of cuda/gemm.cu and cuBLASLt. Included by these two only.
#pragma once

#include "tensor/ops/gemm.h"

namespace proteus::cuda {

/// What cuBLASLt did of a product beyond α·op(A)·op(B) + β·C; the caller does the rest.
struct LtDone {
  bool product = false;  ///< false: the library has no algorithm for it, and c is as it was
  bool bias = false;
  bool gelu = false;  ///< with `pre` written where it was wanted; or gelu_grad, without `act`
};

/// Whether the library does the whole of it, epilogue included (but for `act`).
bool lt_finishes(const GemmFwd& g);

/// Queues the product on the current stream. f32 is multiplied as f32 (no TF32), bf16 with sums in
/// f32, f64 as f64. The algorithm is a function of the shape, the strides and the alignment: the
/// same call gives the same bits. K, M, N and batch are positive.
LtDone lt_multiply(const GemmFwd& g);

}  // namespace proteus::cuda
