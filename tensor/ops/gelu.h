// GELU in the tanh form, and its derivative, for one number: the formula of tensor/ops/gemm.h with
// (1 + tanh u)/2 = σ(2u). Branch-free: loops over it vectorise.
#pragma once

#include "tensor/vmath.h"

namespace proteus {

/// σ(2u), u = √(2/π)·(x + 0.044715·x³).
template <class A>
PROTEUS_HOST_DEVICE inline A gelu_gate(A x) {
  constexpr A kTwice = A(1.5957691216057308);  // 2·√(2/π)
  // Beyond ±80 the gate is 0 or 1 to the last bit of the product; exp would go through subnormal
  // numbers there, which cost some CPUs a hundred cycles each.
  constexpr A kFar = 80;
  const A z = kTwice * x * (A(1) + A(0.044715) * x * x);
  const A below = kFar < z ? kFar : z;
  return A(1) / (A(1) + vmath::exp_bounded(-(-kFar > below ? -kFar : below)));
}

template <class A>
PROTEUS_HOST_DEVICE inline A gelu_value(A x) {
  return x * gelu_gate(x);
}

/// d gelu(x)/dx = σ + x·σ·(1 − σ)·2u'.
template <class A>
PROTEUS_HOST_DEVICE inline A gelu_slope(A x) {
  constexpr A kTwice = A(1.5957691216057308);
  const A s = gelu_gate(x);
  return s + x * s * (A(1) - s) * kTwice * (A(1) + A(0.134145) * x * x);
}

}  // namespace proteus
