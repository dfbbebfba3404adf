// Rows of standard normal numbers that are a pure function of (seed, stream, row): a text of any
// length that nobody has to store. Much faster than Tensor::randn, in f32 with errors of some 1e-6.
#pragma once

#include <cstdint>

#include "tensor/rng.h"

namespace proteus {

/// Rows [first, first + n) of width C into out.
void normal_rows(RngKey key, std::int64_t first, std::int64_t n, std::int64_t C, float* out);

}  // namespace proteus
