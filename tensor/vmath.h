// Elementary functions that vectorise: branch-free polynomials for float (libm's are 15 to 80 times
// slower in loops), libm itself for double. Errors are a few ulp; see tests/vmath_test.cpp.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "tensor/host_device.h"

namespace proteus::vmath {

PROTEUS_HOST_DEVICE inline double exp(double x) { return std::exp(x); }

/// e^x for |x| ≤ 87, or NaN: 2^n · e^r with n = round(x / ln 2), |r| ≤ ln 2 / 2; e^r by its Taylor
/// series to degree 7 (truncation 5e-9).
PROTEUS_HOST_DEVICE inline double exp_bounded(double x) { return std::exp(x); }
PROTEUS_HOST_DEVICE inline float exp_bounded(float x) {
#ifdef __CUDA_ARCH__
  return ::expf(x);  // a GPU has a unit for powers of two
#else
  constexpr float kRound = 12582912.0f;  // 1.5 · 2^23: adding it rounds to an integer
  const float shifted = x * 1.44269504f + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  // The integer n sits in the low bits of `shifted`: into the exponent field with it.
  return p * std::bit_cast<float>((std::bit_cast<std::uint32_t>(shifted) + 127u) << 23);
#endif
}

/// e^x: 0 below −87.7, inf above 88.3; NaN stays NaN. The ends need no selection of their own: the
/// exponent field is 0 at n = −127 and infinity's at n = 128.
PROTEUS_HOST_DEVICE inline float exp(float x) {
#ifdef __CUDA_ARCH__
  return ::expf(x);
#else
  constexpr float kLow = -88.0f;
  constexpr float kHigh = 89.0f;
  const float below = kHigh < x ? kHigh : x;
  return exp_bounded(kLow > below ? kLow : below);
#endif
}

PROTEUS_HOST_DEVICE inline double log1p_unit(double u) { return std::log1p(u); }

/// log(1 + u) for 0 ≤ u ≤ 1: 2·artanh(s) with s = u / (2 + u) ≤ 1/3, series to s^17.
PROTEUS_HOST_DEVICE inline float log1p_unit(float u) {
  const float s = u / (2.0f + u);
  const float q = s * s;
  float p = 1.0f / 17;
  p = p * q + 1.0f / 15;
  p = p * q + 1.0f / 13;
  p = p * q + 1.0f / 11;
  p = p * q + 1.0f / 9;
  p = p * q + 1.0f / 7;
  p = p * q + 1.0f / 5;
  p = p * q + 1.0f / 3;
  p = p * q + 1.0f;
  return 2.0f * s * p;
}

PROTEUS_HOST_DEVICE inline double log(double x) { return std::log(x); }

/// Natural logarithm of a positive normal number, x = m · 2^e with m in [√½, √2); of anything else,
/// nothing. For loops that have no other numbers: special cases keep them from being vectorised.
PROTEUS_HOST_DEVICE inline float log_normal(float x) {
  const std::uint32_t up = std::bit_cast<std::uint32_t>(x) + (0x3f800000u - 0x3f3504f3u);
  const float e = static_cast<float>(static_cast<std::int32_t>(up >> 23) - 127);
  const float m = std::bit_cast<float>((up & 0x007fffffu) + 0x3f3504f3u);
  const float s = (m - 1.0f) / (m + 1.0f);
  const float q = s * s;
  float p = 1.0f / 9;
  p = p * q + 1.0f / 7;
  p = p * q + 1.0f / 5;
  p = p * q + 1.0f / 3;
  return e * 0.693359375f + (2.0f * s + (2.0f * s * q * p - e * 2.12194440e-4f));
}

/// The same; −inf at 0 and below, subnormal numbers count as 0.
PROTEUS_HOST_DEVICE inline float log(float x) {
  constexpr float kTiny = 1.17549435e-38f;
  const float special = x < kTiny ? -std::numeric_limits<float>::infinity() : x;  // inf, NaN
  return x >= kTiny && x <= std::numeric_limits<float>::max() ? log_normal(x) : special;
}

/// σ(x) = 1 / (1 + e^−x).
template <class A>
PROTEUS_HOST_DEVICE inline A sigmoid(A x) {
  return A(1) / (A(1) + exp(-x));
}

/// log σ(x) = min(x, 0) − log(1 + e^−|x|).
template <class A>
PROTEUS_HOST_DEVICE inline A log_sigmoid(A x) {
  const A low = x < A(0) ? x : A(0);
  const A magnitude = x < A(0) ? -x : x;
  return low - log1p_unit(exp(-magnitude));
}

PROTEUS_HOST_DEVICE inline double tanh(double x) { return std::tanh(x); }

/// tanh(x) = 2σ(2x) − 1, and its odd series near 0, where that would cancel.
PROTEUS_HOST_DEVICE inline float tanh(float x) {
  const float q = x * x;
  float p = 62.0f / 2835;
  p = p * q - 17.0f / 315;
  p = p * q + 2.0f / 15;
  p = p * q - 1.0f / 3;
  const float near = x + x * q * p;
  const float far = 2.0f * sigmoid(2.0f * x) - 1.0f;
  return q < 0.0625f ? near : far;
}

}  // namespace proteus::vmath
