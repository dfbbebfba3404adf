// Copies whose source is contiguous along another dimension than the destination, through tiles in
// shared memory: both sides are then accessed in runs. Included by cuda/copy.cu only.
#pragma once

#include <cstddef>

#include "tensor/ops/strided.h"

namespace proteus::cuda {

/// Operand 0 of the walk is the destination, operand 1 the source; `dst` and `src` are their first
/// elements, of `element_bytes` (2, 4 or 8) each. Returns false, and does nothing, where this is
/// not such a copy or is too small to be worth it.
bool copy_transposed(void* dst, const void* src, const Walk<2>& walk, std::size_t element_bytes);

}  // namespace proteus::cuda
