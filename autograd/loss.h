// Cross-entropy with gradients; see tensor/ops/loss.h for the formulas.
#pragma once

#include "autograd/variable.h"
#include "tensor/ops/loss.h"

namespace proteus {

/// Mean cross-entropy of softmax(hidden·weightᵀ): hidden [..., C], weight [V, C], targets [...] i32
/// or i64 (not differentiable). The gradients are made in the forward pass, chunk by chunk, and
/// saved instead of the logits. A weight kept in f32 beside bf16 gets its gradient in f32, as
/// it was summed.
Variable cross_entropy(const Variable& hidden, const Variable& weight, const Tensor& targets,
                       std::int64_t ignore_index = ops::kIgnoreIndex);

/// The same with targets that are ready: nothing waits for the device.
Variable cross_entropy(const Variable& hidden, const Variable& weight, const ops::Targets& targets);

/// The same from logits [..., V]. Saves their gradient.
Variable cross_entropy_logits(const Variable& logits, const Tensor& targets,
                              std::int64_t ignore_index = ops::kIgnoreIndex);

}  // namespace proteus
