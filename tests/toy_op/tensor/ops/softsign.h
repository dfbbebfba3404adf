// softsign(x) = x / (1 + |x|). Computed in f64 for f64 and in f32 otherwise, and rounded once.
#pragma once

#include "tensor/slot.h"
#include "tensor/tensor.h"

namespace proteus {

/// y[i] = softsign(x[i]), n contiguous elements.
struct SoftsignFwd {
  const void* x = nullptr;
  void* y = nullptr;
  std::int64_t n = 0;
  DType dtype = DType::f32;
};
extern Slot<SoftsignFwd> softsign_fwd;

/// dx[i] = dy[i] / (1 + |x[i]|)².
struct SoftsignBwd {
  const void* x = nullptr;
  const void* dy = nullptr;
  void* dx = nullptr;
  std::int64_t n = 0;
  DType dtype = DType::f32;
};
extern Slot<SoftsignBwd> softsign_bwd;

namespace ops {

/// x of any shape and strides, floating; the result is contiguous. Throws ShapeError (undefined),
/// DTypeError.
Tensor softsign(const Tensor& x);
Tensor softsign_backward(const Tensor& x, const Tensor& dy);

}  // namespace ops
}  // namespace proteus
