// Grouped linear layers over packed rows with gradients; see tensor/ops/grouped_gemm.h.
#pragma once

#include "autograd/variable.h"
#include "tensor/ops/pack.h"

namespace proteus {

/// x [tokens, C], weight [G, C, D] → y [M, D]: every packed row is its token times the matrix of
/// its group. Saves x, weight and the rows.
Variable grouped_linear(const Variable& x, const Variable& weight, const PackedRows& rows);

/// y [M, D], weight [G, D, C] → [tokens, C]: every token is the sum of its rows times their
/// matrices, in ascending order of the group, after its row of base [tokens, C] (zero where that is
/// undefined). Saves y, weight and the rows.
Variable grouped_combine(const Variable& y, const Variable& weight, const PackedRows& rows,
                         const Variable& base = {});
/// The same with a base that nobody needs afterwards: the result takes its memory, unless a
/// function has saved it.
Variable grouped_combine(const Variable& y, const Variable& weight, const PackedRows& rows,
                         Variable&& base);

}  // namespace proteus
