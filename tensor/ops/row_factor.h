// What a row is multiplied by (RowFactor of tensor/ops/elementwise.h), and its slope in r.
#pragma once

#include "tensor/ops/elementwise.h"
#include "tensor/vmath.h"

namespace proteus {

template <class A>
PROTEUS_HOST_DEVICE inline A factor_of(const RowFactor& f, A r) {
  return f.gated ? static_cast<A>(f.a) * vmath::sigmoid(r) + static_cast<A>(f.b) : r;
}

template <class A>
PROTEUS_HOST_DEVICE inline A factor_slope(const RowFactor& f, A r) {
  return f.gated ? static_cast<A>(f.a) * vmath::sigmoid(r) * vmath::sigmoid(-r) : A(1);
}

}  // namespace proteus
