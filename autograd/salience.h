// Token salience with gradients; see tensor/ops/salience.h for the formula.
#pragma once

#include "autograd/variable.h"
#include "tensor/ops/salience.h"

namespace proteus {

/// S [N] of x [N, R], v [R]; p [G, R], kappa [] and gate i32 [N] undefined without prototypes.
/// Gradients go to x, v and kappa. Saves all of them.
Variable salience(const Variable& x, const Variable& v, const Tensor& p, const Variable& kappa,
                  const Tensor& gate);

}  // namespace proteus
