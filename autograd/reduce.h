// Sums, means and maxima with gradients; see tensor/ops/reduce.h.
#pragma once

#include <vector>

#include "autograd/variable.h"

namespace proteus {

/// Over `dims` (all if empty; negative ones count from the end), which become 1 (keepdim) or
/// disappear. Save shapes only.
Variable sum(const Variable& x, const std::vector<int>& dims = {}, bool keepdim = false);
Variable mean(const Variable& x, const std::vector<int>& dims = {}, bool keepdim = false);
/// The gradient goes to the first of equal maxima. Saves their positions.
Variable max(const Variable& x, const std::vector<int>& dims = {}, bool keepdim = false);

}  // namespace proteus
