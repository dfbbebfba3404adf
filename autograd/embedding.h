// Embedding with gradient; see tensor/ops/embedding.h.
#pragma once

#include "autograd/variable.h"

namespace proteus {

/// weight [V, C], ids i32 or i64 of any shape [...] → [..., C]. Saves the ids.
Variable embedding(const Variable& weight, const Tensor& ids);

}  // namespace proteus
