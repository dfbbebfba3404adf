// IEEE half precision (binary16), which files hold and nothing computes with.
#pragma once

#include <bit>
#include <cstdint>

namespace proteus {

/// Exact. Multiplying by 2^112 moves the exponent from bias 15 to 127 and makes subnormal numbers
/// right as well; without a branch, so that loops of it become vectors.
inline float float_of_half(std::uint16_t half) {
  const std::uint32_t sign = std::uint32_t{half & 0x8000u} << 16;
  const std::uint32_t rest = std::uint32_t{half & 0x7FFFu} << 13;
  const bool special = rest >= 0x0F800000u;  // infinity, NaN
  const float scaled = std::bit_cast<float>(rest) * 0x1p112f;
  const std::uint32_t bits = special ? rest | 0x7F800000u : std::bit_cast<std::uint32_t>(scaled);
  return std::bit_cast<float>(sign | bits);
}

/// Rounds to nearest even; what is too large becomes infinity, NaN stays NaN.
inline std::uint16_t half_of_float(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const auto sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000u);
  const std::uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return static_cast<std::uint16_t>(sign | 0x7E00u);
  constexpr std::uint32_t kInfinityFrom = 0x477FF000u;  // 65520, halfway past the largest half
  if (magnitude >= kInfinityFrom) return static_cast<std::uint16_t>(sign | 0x7C00u);
  constexpr std::uint32_t kSmallestNormal = 0x38800000u;  // 2^-14
  if (magnitude < kSmallestNormal) {
    // Adding 1/2 moves the half's last place to the float's, and the addition rounds.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(shifted) & 0x7FFu));
  }
  const std::uint32_t rounded = magnitude + 0xFFFu + (magnitude >> 13 & 1u);
  return static_cast<std::uint16_t>(sign | ((rounded >> 13) - ((127u - 15u) << 10)));
}

}  // namespace proteus
