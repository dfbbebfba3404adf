// The ASPA layer once more, as plainly as the page states it: masked dense attention over every
// head and token from the same parameters, composed of ordinary differentiable functions, B·H·T²
// memory. It shares no kernel of routing, packing, rotation or attention with the layer; tests
// compare the two, forwards and backwards. No dropout. Meant for f64 and small sizes.
#pragma once

#include "aspa/attention.h"
#include "aspa/experts.h"

namespace proteus {

/// z [B·T, Hr] = log Σ_g m_g·exp(w_g·x̃ + λ·cos(x̃, p_g)) of x [B, T, C].
Variable reference_logits(const Gating& gating, const Variable& x);

/// z [B·T, Hr] of both roles and what the layer must select from it (k largest z − θ).
struct ReferenceRouting {
  Variable query;
  Variable key;
  Selection selection;
};
ReferenceRouting reference_routing(const AspaAttention& layer, const Variable& x);

/// The layer's output for a given selection; x [B, T, C].
Variable reference_forward(const AspaAttention& layer, const Variable& x,
                           const Selection& selection);

/// The experts i32 [B·T, k] that the MLP must select for x.
Tensor reference_experts(const GatedMlp& layer, const Variable& x);

/// The gated MLP for given experts i32 [B·T, k]: every expert runs on every token.
Variable reference_forward(const GatedMlp& layer, const Variable& x, const Tensor& selected);

}  // namespace proteus
