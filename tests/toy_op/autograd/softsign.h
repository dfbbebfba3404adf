// The softsign with gradients; see tensor/ops/softsign.h for the formula.
#pragma once

#include "autograd/variable.h"

namespace proteus {

/// x of any shape and floating dtype. Saves x. Throws DTypeError.
Variable softsign(const Variable& x);

}  // namespace proteus
