// Prototypes: running centroids of the tokens that each gate has taken. Once per optimizer step,
// with sums over gradient accumulation and both roles (docs/aspa.md, "Prototypes"):
//   N_g ← μN_g + (1−μ)Σω     P_g ← μP_g + (1−μ)Σω·x̃     p_g = P_g / |P_g|
// A gate whose N stays under dead_share of the mean for dead_steps updates is dead: it leaves its
// head (never a head's last gate), becomes half of the busiest gate, and its prototype starts again
// at the recent token that is farthest from all prototypes.
#pragma once

#include <cstdint>
#include <vector>

#include "aspa/config.h"
#include "tensor/tensor.h"

namespace proteus {

/// The gate table as training sees it: handles to the router's tensors, written in place. All
/// floating ones have the router's dtype.
struct GateState {
  Tensor w;             ///< [G, R]; like p, N, P and starving on the layer's device
  Tensor p;             ///< [G, R] unit prototypes
  Tensor N;             ///< [G]
  Tensor P;             ///< [G, R]
  Tensor mass;          ///< [G], sums to 1 within a head; on the host
  Tensor head_of_gate;  ///< [G] i32, on the host
  Tensor starving;      ///< [G] i32: updates in a row under the dead share
};

/// What one optimizer step has collected.
struct GateUpdate {
  Tensor weight_sum;    ///< [G] Σω; undefined: nothing was collected
  Tensor weighted_sum;  ///< [G, R] Σω·x̃
  Tensor recent;        ///< [m, R] some of the tokens, to seed prototypes from
};

/// Mean of 1 − cos(p_g before, p_g after) over gates, both [G, R]; −1 where their numbers differ or
/// one is undefined.
double prototype_drift(const Tensor& before, const Tensor& after);

/// A dead gate that came back as half of `source` (itself when it only got a new prototype).
struct Revival {
  std::int64_t gate = 0;
  std::int64_t source = 0;
};

/// The three lines above, and the count of starving updates.
void update_prototypes(const PrototypeConfig& config, const GateState& gates,
                       const GateUpdate& update);
/// Gates that have starved long enough.
std::vector<std::int64_t> dead_gates(const PrototypeConfig& config, const GateState& gates);
/// Brings dead gates back, lowest index first. `noise` draws what is added to their w. When heads
/// of gates have changed the result is not empty and the caller rebuilds what depends on them.
std::vector<Revival> revive_gates(const PrototypeConfig& config, const GateState& gates,
                                  const GateUpdate& update, RngKey noise);

}  // namespace proteus
