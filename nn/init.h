// Initial weights as in GPT-2: normal with std 0.02; the projections that write into the residual
// stream are scaled by 1/sqrt(2 · layers) (Radford et al., 2019, section 2.3).
#pragma once

#include <cmath>
#include <cstdint>

#include "tensor/tensor.h"

namespace proteus {

constexpr double kInitStd = 0.02;

inline double residual_std(std::int64_t layers) {
  return kInitStd / std::sqrt(2.0 * static_cast<double>(layers));
}

/// A new tensor of normal numbers from the generator's next stream.
inline Tensor normal_init(const Shape& shape, Generator& generator, double std = kInitStd,
                          DType dtype = DType::f32) {
  return Tensor::randn(shape, generator.next(), dtype, 0, std);
}

}  // namespace proteus
