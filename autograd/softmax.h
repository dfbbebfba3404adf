// Softmax and its relatives over the last dimension; see tensor/ops/softmax.h for the formulas.
#pragma once

#include "autograd/variable.h"

namespace proteus {

/// x [..., C] → [..., C]. Saves the result. All throw ShapeError (rank 0), DTypeError.
Variable softmax(const Variable& x);
/// x [..., C] → [..., C]. Saves x and one number per row.
Variable log_softmax(const Variable& x);
/// x [..., C] → [...]. Saves x and one number per row.
Variable logsumexp(const Variable& x);

}  // namespace proteus
