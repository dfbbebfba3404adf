// What a model trains on: token ids and what should follow each of them.
#pragma once

#include <cstdint>

#include "tensor/tensor.h"

namespace proteus {

/// A target that counts for nothing.
constexpr std::int32_t kIgnoredTarget = -100;

/// inputs and targets, i32 [B, T] on the CPU; targets may be kIgnoredTarget.
struct Batch {
  Tensor inputs;
  Tensor targets;
};

}  // namespace proteus
