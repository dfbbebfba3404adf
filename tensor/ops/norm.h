// LayerNorm (Ba et al., arXiv:1607.06450):    y = (x − mean) / sqrt(var + eps) · gamma + beta
// RMSNorm (Zhang & Sennrich, arXiv:1910.07467): y = x / sqrt(mean(x²) + eps) · gamma
// over the last dimension. x is [..., C], seen as rows of C.
#pragma once

#include "tensor/slot.h"
#include "tensor/tensor.h"

namespace proteus {

/// rows × C, contiguous. `centre` is LayerNorm, otherwise RMSNorm (mean stays unused). gamma and
/// beta [C] may be null (1 and 0). mean and rstd [rows] are in the accumulation type.
struct NormFwd {
  const void* x = nullptr;
  const void* gamma = nullptr;
  const void* beta = nullptr;
  void* y = nullptr;
  void* mean = nullptr;
  void* rstd = nullptr;
  std::int64_t rows = 0;
  std::int64_t C = 0;
  double eps = 0;
  bool centre = true;
  DType dtype = DType::f32;
};
extern Slot<NormFwd> norm_fwd;

/// dx [rows, C], with add_dx rounded and then added to what is there: the bits of two passes.
/// dgamma and dbeta [C] may be null.
struct NormBwd {
  const void* x = nullptr;
  const void* gamma = nullptr;
  const void* mean = nullptr;
  const void* rstd = nullptr;
  const void* dy = nullptr;
  void* dx = nullptr;
  void* dgamma = nullptr;
  void* dbeta = nullptr;
  std::int64_t rows = 0;
  std::int64_t C = 0;
  bool centre = true;
  bool add_dx = false;
  DType dtype = DType::f32;
};
extern Slot<NormBwd> norm_bwd;

namespace ops {

struct NormResult {
  Tensor y;     ///< shape and dtype of x
  Tensor mean;  ///< [rows], accumulation dtype; undefined for RMSNorm
  Tensor rstd;  ///< [rows], accumulation dtype
};
struct NormGrads {
  Tensor dx, dgamma, dbeta;  ///< undefined where the input is
};

/// gamma and beta are [C] with the dtype of x, or undefined. Any strides. Sums are f64 for f64 and
/// f32 otherwise. Throws ShapeError, DTypeError.
NormResult layernorm(const Tensor& x, const Tensor& gamma, const Tensor& beta, double eps = 1e-5);
NormResult rmsnorm(const Tensor& x, const Tensor& gamma, double eps = 1e-5);
/// For both: `saved` is what the forward returned (its y is not needed). With `sum`, contiguous, dx
/// is added to it in place and not returned.
NormGrads norm_backward(const Tensor& x, const Tensor& gamma, const NormResult& saved,
                        const Tensor& dy, bool with_beta, const Tensor* sum = nullptr);

}  // namespace ops
}  // namespace proteus
