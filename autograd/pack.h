// Values between tokens and packed rows, with gradients; see tensor/ops/pack.h.
#pragma once

#include "autograd/variable.h"
#include "tensor/ops/pack.h"

namespace proteus {

/// x [N, C] → [M, C]: the token of every row. Saves the rows.
Variable gather_rows(const Variable& x, const PackedRows& rows);
/// y [M, C] → [N, C]: the sum of every token's rows, in ascending order of the head. Saves the
/// rows.
Variable combine_rows(const Variable& y, const PackedRows& rows);
/// z [N, Hr] → [M]: the value at every row's token and head. Saves the rows.
Variable gather_slots(const Variable& z, const PackedRows& rows);

}  // namespace proteus
