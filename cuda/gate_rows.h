// Routing of packed rows (cuda/gate_rows.cu): what cuda/routing.cu puts into the slots. f64 or f32:
// routing knows no other dtype.
#pragma once

#include "tensor/ops/routing.h"

namespace proteus::cuda {

void gate_rows_forward(const GateRowsFwd& a);
void gate_rows_backward(const GateRowsBwd& a);
void prototype_sums(const PrototypeStats& a);

}  // namespace proteus::cuda
