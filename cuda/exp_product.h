// The product of the output layer with the exponential of the softmax in its epilogue, on Hopper.
#pragma once

#include <cstdint>

#include "tensor/dtype.h"

namespace proteus::cuda {

/// Columns whose exponentials are summed together.
constexpr std::int64_t kExpColumns = 128;

/// e[r, v] = exp(Σ_c h[r, c]·w[v, c] − shift[r]), rounded to bf16, and sums[v / kExpColumns, r],
/// the sums of those before rounding. h [rows, C], w [V, C] and e [rows, V] are bf16 and at
/// multiples of 16 bytes; h and w are contiguous, the rows of e are e_step apart. e may be null:
/// nothing but the sums is wanted.
struct ExpProduct {
  const void* h = nullptr;
  const void* w = nullptr;
  const float* shift = nullptr;
  void* e = nullptr;
  float* sums = nullptr;
  std::int64_t rows = 0;
  std::int64_t V = 0;
  std::int64_t C = 0;
  std::int64_t e_step = 0;
};
bool exp_product_fits(const ExpProduct& p);
void exp_product(const ExpProduct& p);

}  // namespace proteus::cuda
