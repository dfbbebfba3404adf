// Dropout (Srivastava et al., JMLR 15, 2014): y_i = x_i / (1 − p) where element i is kept, else 0.
// It is kept when random_u32(key, i) ≥ drop_threshold(p), i counting the elements in row-major
// order: the mask is a pure function of (key, i), so nothing is stored and the gradient draws it
// again.
#pragma once

#include "tensor/slot.h"
#include "tensor/tensor.h"

namespace proteus {

/// y = residual + scale·mask·x over n contiguous elements; residual may be null (0). 4·⌈n/4⌉ random
/// numbers of the stream `key` are used.
struct DropoutFwd {
  const void* x = nullptr;
  const void* residual = nullptr;
  void* y = nullptr;
  std::int64_t n = 0;
  std::uint32_t threshold = 0;
  double scale = 1;
  RngKey key;
  DType dtype = DType::f32;
};
extern Slot<DropoutFwd> dropout_fwd;

namespace ops {

/// x f64, f32 or bf16, any shape and strides; 0 ≤ p < 1 (with p = 0 the result is x itself). Its
/// gradient is the same function of dy. Throws DTypeError, ConfigError for p.
Tensor dropout(const Tensor& x, double p, RngKey key);
/// residual + dropout(x, p, key), in one pass; shapes and dtypes are equal. Throws ShapeError too.
Tensor dropout_add(const Tensor& x, const Tensor& residual, double p, RngKey key);

}  // namespace ops
}  // namespace proteus
