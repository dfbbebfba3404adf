// Rotary positions with gradients; see tensor/ops/rope.h for the formula and the errors.
#pragma once

#include "autograd/variable.h"
#include "tensor/ops/rope.h"

namespace proteus {

/// x [B, T, H, D], token t at position t + offset; the first R ≤ D channels of every head are
/// rotated. Saves nothing.
Variable rope(const Variable& x, std::int64_t R, std::int64_t offset = 0,
              double base = ops::kRopeBase);
/// x [rows, D] or [rows, H, D] with positions i32 [rows]. Saves the positions.
Variable rope(const Variable& x, const Tensor& positions, std::int64_t R,
              double base = ops::kRopeBase);
/// qkv [B, T, 3, H, D]: queries and keys are rotated, values pass. Saves nothing.
Variable rope_qkv(const Variable& qkv, std::int64_t R, std::int64_t offset = 0,
                  double base = ops::kRopeBase);
/// The same in place where qkv is contiguous: it must not be read afterwards.
Variable rope_qkv_(const Variable& qkv, std::int64_t R, std::int64_t offset = 0,
                   double base = ops::kRopeBase);

}  // namespace proteus
