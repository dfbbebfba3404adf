// The step of the prototypes of a gate table (docs/aspa.md, "Prototypes"):
//   N ← keep·N + (1 − keep)·Σω     P ← keep·P + (1 − keep)·Σω·x̃     p = P / |P|
// A gate whose new N is under dead_share of the mean has starved once more; otherwise it starts
// counting again. A P of no length leaves p as it is.
#pragma once

#include "tensor/slot.h"
#include "tensor/tensor.h"

namespace proteus {

/// N, weight_sum [G]; P, p, weighted_sum [G, R]; starving [G]. N, P, p and starving are written in
/// place. Lengths and the mean are summed in f64.
struct PrototypesStep {
  void* N = nullptr;
  void* P = nullptr;
  void* p = nullptr;
  std::int32_t* starving = nullptr;
  const void* weight_sum = nullptr;
  const void* weighted_sum = nullptr;
  std::int64_t G = 0;
  std::int64_t R = 0;
  double keep = 0;
  double dead_share = 0;
  DType dtype = DType::f32;
};
extern Slot<PrototypesStep> prototypes_step;

namespace ops {

/// What is written in place: N [G], P and p [G, R] of one dtype, f32 or f64; starving i32 [G]. All
/// contiguous.
struct PrototypeTable {
  Tensor N, P, p, starving;
};

/// weight_sum [G] and weighted_sum [G, R] have the table's dtype. Throws ShapeError, DTypeError,
/// DeviceError.
void prototypes_step(const PrototypeTable& table, const Tensor& weight_sum,
                     const Tensor& weighted_sum, double keep, double dead_share);

}  // namespace ops
}  // namespace proteus
