// Rows by an index list with gradients; see tensor/ops/take.h.
#pragma once

#include "autograd/variable.h"
#include "tensor/ops/take.h"

namespace proteus {

/// x [rows, C] → [taken, C]; a row's gradient is the sum over all places where it was taken. Saves
/// nothing.
Variable take_rows(const Variable& x, const RowIndex& index);

}  // namespace proteus
