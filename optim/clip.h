// The global norm of the gradients, by which they are clipped (Pascanu et al., arXiv:1211.5063;
// clip_scale in tensor/ops/optim.h).
#pragma once

#include "optim/optimizer.h"

namespace proteus {

/// Σ g² over all gradients, in f64 and in a fixed order, into out: f64 [1] where the parameters
/// are. NaN and Inf come through.
void squared_gradients(const std::vector<ParameterRef>& parameters, const Tensor& out);
/// The L2 norm of all gradients together. Waits for it.
double gradient_norm(const std::vector<ParameterRef>& parameters);

}  // namespace proteus
