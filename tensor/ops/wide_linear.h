// A linear layer that is wider than its input: y = x·Wᵀ with x in bf16, W, y and sums in f32 (f64
// or f32 throughout otherwise). For routing, whose decisions are taken in f32: x is never copied to
// f32 as a whole on a GPU, where W is cut into bf16 parts instead, which hold all of its digits.
#pragma once

#include "tensor/slot.h"
#include "tensor/tensor.h"

namespace proteus {

/// x [M, K] of `dtype`; weight [N, K] and y [M, N] in its accumulation type.
struct WideLinearFwd {
  const void* x = nullptr;
  const void* weight = nullptr;
  void* y = nullptr;
  std::int64_t M = 0, N = 0, K = 0;
  DType dtype = DType::f32;
};
extern Slot<WideLinearFwd> wide_linear_fwd;

/// dx = dy·weight, rounded to `dtype` (added to what dx holds, with add_dx), and dweight = dyᵀ·x;
/// each may be null.
struct WideLinearBwd {
  const void* x = nullptr;
  const void* weight = nullptr;
  const void* dy = nullptr;
  void* dx = nullptr;
  void* dweight = nullptr;
  std::int64_t M = 0, N = 0, K = 0;
  bool add_dx = false;
  DType dtype = DType::f32;
};
extern Slot<WideLinearBwd> wide_linear_bwd;

namespace ops {

/// x [..., in] f64, f32 or bf16; weight [out, in] in the accumulation type of x → [..., out] in
/// that type. Throws ShapeError, DTypeError.
Tensor wide_linear(const Tensor& x, const Tensor& weight);

struct WideLinearGrads {
  Tensor dx, dweight;  ///< undefined where not wanted
};
/// With `sum`, contiguous, dx is added to it in place and not returned.
WideLinearGrads wide_linear_backward(const Tensor& x, const Tensor& weight, const Tensor& dy,
                                     bool want_dx, bool want_dweight, const Tensor* sum = nullptr);

}  // namespace ops
}  // namespace proteus
