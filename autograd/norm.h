// LayerNorm and RMSNorm with gradients; see tensor/ops/norm.h for the formulas.
#pragma once

#include "autograd/variable.h"

namespace proteus {

/// x [..., C], gamma and beta [C] or undefined. Saves x, gamma and one mean and rstd per row.
Variable layernorm(const Variable& x, const Variable& gamma, const Variable& beta,
                   double eps = 1e-5);
/// x [..., C], gamma [C] or undefined. Saves x, gamma and one rstd per row.
Variable rmsnorm(const Variable& x, const Variable& gamma, double eps = 1e-5);

}  // namespace proteus
