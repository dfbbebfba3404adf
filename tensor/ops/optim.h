// Optimizer steps over all parameters in one pass, and the norm of all gradients.
#pragma once

#include <vector>

#include "tensor/slot.h"
#include "tensor/tensor.h"

namespace proteus {

/// One parameter: n contiguous elements of value and gradient in one dtype, and of state in its
/// accumulation dtype (f32 for bf16).
struct StepTensor {
  void* value = nullptr;
  const void* grad = nullptr;
  void* m = nullptr;  ///< first moment, or momentum
  void* v = nullptr;  ///< second moment (AdamW)
  std::int64_t n = 0;
  double decay = 0;  ///< weight decay of this parameter
  DType dtype = DType::f32;
};

/// AdamW with decoupled weight decay (Loshchilov & Hutter, arXiv:1711.05101, algorithm 2):
///   m ← β1 m + (1−β1) g;  v ← β2 v + (1−β2) g²
///   x ← x − lr·decay·x − lr·(m/c1) / (sqrt(v/c2) + eps),  c1 = 1 − β1^t, c2 = 1 − β2^t
/// g is the gradient times grad_scale (clipping).
struct AdamWStep {
  const StepTensor* tensors = nullptr;
  std::int64_t count = 0;
  double lr = 0, beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
  double correction1 = 1, correction2 = 1;  ///< c1, c2
  double grad_scale = 1;
};
extern Slot<AdamWStep> adamw_step;

/// SGD with momentum: m ← β m + (g + decay·x); x ← x − lr·m.
struct SgdStep {
  const StepTensor* tensors = nullptr;
  std::int64_t count = 0;
  double lr = 0, momentum = 0;
  double grad_scale = 1;
};
extern Slot<SgdStep> sgd_step;

/// *out = Σ over all tensors and elements of g², in f64 and in a fixed order. Uses grad, n and
/// dtype.
struct SquaredNorm {
  const StepTensor* tensors = nullptr;
  std::int64_t count = 0;
  double* out = nullptr;  ///< on the host
};
extern Slot<SquaredNorm> squared_norm;

}  // namespace proteus
