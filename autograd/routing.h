// Gate logits of packed rows with gradients; see tensor/ops/routing.h for the formulas.
#pragma once

#include "autograd/variable.h"
#include "tensor/ops/routing.h"

namespace proteus {

/// The gate table: w [G, R] and lambda [] are trained, the rest is state. `state.w` and
/// `state.lambda` are ignored; without prototypes state.p and lambda are undefined.
struct GateVariables {
  Variable w;
  Variable lambda;
  ops::GateTensors state;
};

struct RowLogitsVar {
  Variable z;    ///< [M]
  Tensor share;  ///< [M, width] each gate's share of its head: for the prototypes
};

/// z of the rows that were selected; x [N, R] in routing space. Gradients go to x, w and lambda.
/// Saves x, w, lambda, share and the rows.
RowLogitsVar gate_row_logits(const Variable& x, const GateVariables& gates, const PackedRows& rows);

}  // namespace proteus
