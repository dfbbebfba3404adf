// One element from one type to another, rounded once; for copies and fills on every device.
#pragma once

#include <bit>
#include <cmath>
#include <type_traits>

#include "tensor/dtype.h"
#include "tensor/host_device.h"

namespace proteus {

/// An f64 to bf16 in one rounding: the f32 in between is rounded to odd, which keeps ties apart.
PROTEUS_HOST_DEVICE inline bfloat16 narrow(double value) {
  float f = static_cast<float>(value);
  const double wide = static_cast<double>(f);
  if (std::isfinite(f) && wide != value) {
    // One less in the bits is the next number towards zero.
    std::uint32_t bits = std::bit_cast<std::uint32_t>(f);
    if (std::abs(wide) > std::abs(value)) --bits;
    f = std::bit_cast<float>(bits | 1u);
  }
  return bfloat16(f);
}

template <class To, class From>
PROTEUS_HOST_DEVICE To convert(From value) {
  if constexpr (std::is_same_v<To, bfloat16> && std::is_same_v<From, double>) {
    return narrow(value);
  } else if constexpr (std::is_same_v<To, bfloat16>) {
    return bfloat16(static_cast<float>(value));
  } else if constexpr (std::is_same_v<From, bfloat16>) {
    return static_cast<To>(static_cast<float>(value));
  } else {
    return static_cast<To>(value);
  }
}

}  // namespace proteus
