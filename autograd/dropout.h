// Dropout with gradient; see tensor/ops/dropout.h. Nothing is saved: the mask is drawn again.
#pragma once

#include "autograd/variable.h"
#include "tensor/rng.h"

namespace proteus {

/// x of any shape, 0 ≤ p < 1; p = 0 is the identity.
Variable dropout(const Variable& x, double p, RngKey key);
/// residual + dropout(x, p, key); one shape.
Variable dropout_add(const Variable& x, const Variable& residual, double p, RngKey key);

/// With the generator's next stream (the same one again while a checkpointed segment is
/// recomputed); p = 0 takes none.
Variable dropout(const Variable& x, double p, Generator& generator);
Variable dropout_add(const Variable& x, const Variable& residual, double p, Generator& generator);

}  // namespace proteus
