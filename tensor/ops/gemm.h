// Matrix products: C[M×N] = α·op(A)·op(B) + β·C, batched, with a fused epilogue
//   c ← c + bias;   gelu: pre = c, c ← gelu(c);   gelu_grad: c ← c·gelu'(pre), act = gelu(pre)
// GELU in the tanh form of GPT-2 (Hendrycks & Gimpel, arXiv:1606.08415):
//   gelu(x) = x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³)))
// The work is cut by shape alone, into tiles of C and, for weight gradients, chunks of K: any
// number of threads gives the same bits, and row i of C depends on row i of op(A) only.
#pragma once

#include "tensor/slot.h"
#include "tensor/tensor.h"

namespace proteus {

enum class GemmEpilogue : std::uint8_t { none, gelu, gelu_grad };

/// Row-major matrices with row strides ld (elements) and a stride per batch. op(A) [M, K] is stored
/// as A[M×lda] or, transposed, as A[K×lda]; op(B) [K, N] alike. All of one dtype; sums are f64 for
/// f64 and f32 otherwise. pre and act have the layout of c. beta = 0 does not read c. With wide_c,
/// c holds the sums as they are, in the accumulation type; there is no bias and no epilogue then.
/// With `add`, which lies as c does, c = op(A)·op(B) + bias + add: one matrix, beta 0, no epilogue.
struct GemmFwd {
  const void* a = nullptr;
  const void* b = nullptr;
  void* c = nullptr;
  const void* bias = nullptr;  ///< [N], or null
  const void* add = nullptr;   ///< like c, or null
  void* pre = nullptr;         ///< gelu: written unless null; gelu_grad: read
  void* act = nullptr;         ///< gelu_grad: written unless null
  std::int64_t M = 0, N = 0, K = 0;
  std::int64_t lda = 0, ldb = 0, ldc = 0;
  std::int64_t batch = 1;
  std::int64_t a_stride = 0, b_stride = 0, c_stride = 0;
  bool trans_a = false, trans_b = false;
  bool wide_c = false;
  double alpha = 1;
  double beta = 0;
  GemmEpilogue epilogue = GemmEpilogue::none;
  DType dtype = DType::f32;
};
extern Slot<GemmFwd> gemm_fwd;

/// Backward of the epilogue: dpre = dy·gelu'(pre) when pre is given, dbias[n] = Σ_m dpre[m, n]
/// (of dy without pre). dy, pre, dpre [M, N] contiguous; dbias [N] or null.
struct BiasBwd {
  const void* dy = nullptr;
  const void* pre = nullptr;
  void* dpre = nullptr;
  void* dbias = nullptr;
  std::int64_t M = 0;
  std::int64_t N = 0;
  DType dtype = DType::f32;
};
extern Slot<BiasBwd> bias_bwd;

namespace ops {

/// c = alpha·a·b + beta·c in place (c's version is bumped); c has the dtype of a and b, or is f32
/// beside bf16. a [..., M, K], b [..., K, N] with
/// batch dimensions that broadcast to a common shape; c [..., M, N] has that shape, or 1 in some of
/// its dimensions: the products are then summed over these, in order. Views are read without a copy
/// where rows or columns are contiguous; c must have contiguous rows or columns.
/// Throws ShapeError, DTypeError.
void gemm_into(const Tensor& c, const Tensor& a, const Tensor& b, double alpha = 1,
               double beta = 0);
/// a [..., M, K] · b [..., K, N] → [..., M, N]; batch dimensions broadcast. With trans_a, a is
/// [..., K, M], with trans_b, b is [..., N, K]. Bits do not depend on the strides of a and b.
Tensor matmul(const Tensor& a, const Tensor& b, bool trans_a = false, bool trans_b = false);

/// x [..., in], weight [out, in], bias [out] or undefined → x·weightᵀ + bias [..., out]; plus
/// `residual` of that shape, if defined: it is added before the result is rounded.
Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias,
              const Tensor& residual = {});

struct LinearGelu {
  Tensor y;    ///< gelu(pre)
  Tensor pre;  ///< x·weightᵀ + bias, undefined unless asked for
};
LinearGelu linear_gelu(const Tensor& x, const Tensor& weight, const Tensor& bias, bool keep_pre);

/// dy [..., out] · weight [out, in] → dx [..., in].
Tensor linear_dx(const Tensor& dy, const Tensor& weight);
/// The same, added to dx [..., in] in place, which is contiguous.
void linear_dx_add(const Tensor& dx, const Tensor& dy, const Tensor& weight);
/// dyᵀ·x summed over all leading dimensions → dweight [out, in], of the dtype of x or, beside bf16,
/// f32 as it was summed.
Tensor linear_dweight(const Tensor& dy, const Tensor& x, DType dtype);
inline Tensor linear_dweight(const Tensor& dy, const Tensor& x) {
  return linear_dweight(dy, x, x.dtype());
}

struct GeluGrad {
  Tensor dpre;  ///< (dy·weight)·gelu'(pre)
  Tensor act;   ///< gelu(pre), when asked for
};
/// The backward pass through weight and the GELU before it: dy [..., out], weight [out, hidden],
/// pre [..., hidden].
GeluGrad linear_dx_gelu(const Tensor& dy, const Tensor& weight, const Tensor& pre,
                        bool with_act = true);

struct BiasGrad {
  Tensor dpre;   ///< dy·gelu'(pre); dy itself without pre
  Tensor dbias;  ///< [N], the sum of dpre over all other dimensions; undefined unless asked for
};
/// dy and pre [..., N]; pre may be undefined.
BiasGrad bias_backward(const Tensor& dy, const Tensor& pre, bool with_bias);

}  // namespace ops
}  // namespace proteus
