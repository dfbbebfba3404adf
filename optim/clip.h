// Gradient clipping by the global norm (Pascanu et al., arXiv:1211.5063).
#pragma once

#include "optim/optimizer.h"

namespace proteus {

/// The L2 norm of all gradients together, summed in f64 in a fixed order. NaN and Inf come through.
double gradient_norm(const std::vector<ParameterRef>& parameters);

/// What gradients must be multiplied by so that a norm of `norm` becomes at most `max_norm`; 1 when
/// max_norm is 0 (no clipping).
double clip_scale(double norm, double max_norm);

}  // namespace proteus
