// Optimizer steps over all parameters in one pass, the norm of all gradients, and the numbers that
// a step needs: they are read where the parameters are, so that a step can be queued (and recorded)
// before the host knows them.
#pragma once

#include <cmath>
#include <vector>

#include "tensor/host_device.h"
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

/// The numbers of one step.
struct StepNumbers {
  double lr = 0;
  double correction1 = 1, correction2 = 1;  ///< c1, c2 of AdamW
  double grad_scale = 1;                    ///< every gradient is multiplied by it
  double stopped = 0;                       ///< not 0: nothing is updated
};
/// How many of them the host sets at every step, from the first on.
constexpr std::int64_t kHostNumbers = 3;
constexpr std::int64_t kStepNumbers = 5;
static_assert(sizeof(StepNumbers) == kStepNumbers * sizeof(double));

/// AdamW with decoupled weight decay (Loshchilov & Hutter, arXiv:1711.05101, algorithm 2):
///   m ← β1 m + (1−β1) g;  v ← β2 v + (1−β2) g²
///   x ← x − lr·decay·x − lr·(m/c1) / (sqrt(v/c2) + eps),  c1 = 1 − β1^t, c2 = 1 − β2^t
/// g is the gradient times grad_scale (clipping). `numbers` are on the device of the tensors.
struct AdamWStep {
  const StepTensor* tensors = nullptr;
  std::int64_t count = 0;
  const StepNumbers* numbers = nullptr;
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
};
extern Slot<AdamWStep> adamw_step;

/// SGD with momentum: m ← β m + (g + decay·x); x ← x − lr·m.
struct SgdStep {
  const StepTensor* tensors = nullptr;
  std::int64_t count = 0;
  const StepNumbers* numbers = nullptr;
  double momentum = 0;
};
extern Slot<SgdStep> sgd_step;

/// *out = Σ over all tensors and elements of g², in f64 and in a fixed order. Uses grad, n and
/// dtype.
struct SquaredNorm {
  const StepTensor* tensors = nullptr;
  std::int64_t count = 0;
  double* out = nullptr;  ///< on the device of the tensors
};
extern Slot<SquaredNorm> squared_norm;

/// What a step does with its gradients, of which *squared_norm is Σ g²:
///   report[0] = share·Σ losses, in order;  report[1] = ‖g‖
///   grad_scale ← what makes ‖g‖ at most max_norm (0: 1)
/// Where one of the two is not finite, numbers->stopped is set, and stays so.
struct StepScale {
  const double* losses = nullptr;
  std::int64_t batches = 0;
  double share = 1;
  const double* squared_norm = nullptr;
  double max_norm = 0;
  StepNumbers* numbers = nullptr;
  double* report = nullptr;
};
extern Slot<StepScale> step_scale;

/// max_norm / norm where the norm is larger (a little less, for a norm that is rounded), else 1;
/// 1 for a max_norm of 0.
PROTEUS_HOST_DEVICE inline double clip_scale(double norm, double max_norm) {
  constexpr double kTiny = 1e-6;
  return max_norm > 0 && norm > max_norm ? max_norm / (norm + kTiny) : 1.0;
}

/// The formulas of step_scale, for the kernels of every device.
PROTEUS_HOST_DEVICE inline void scale_step(const StepScale& s) {
  double loss = 0;
  for (std::int64_t i = 0; i < s.batches; ++i) loss += s.losses[i] * s.share;
  const double norm = std::sqrt(*s.squared_norm);
  s.report[0] = loss;
  s.report[1] = norm;
  s.numbers->grad_scale = clip_scale(norm, s.max_norm);
  if (!std::isfinite(loss) || !std::isfinite(norm)) s.numbers->stopped = 1;
}

}  // namespace proteus
