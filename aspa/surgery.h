// Gate surgery: changes of the gate table and of the heads between optimizer steps (docs/aspa.md,
// "Gate surgery"), of attention and of a gated MLP alike: there a head is an expert. The shapes of
// parameters, prototypes, thresholds and optimizer state change together or not at all: an
// operation that would break a rule throws ConfigError, and so may the hook; the layer is then as
// it was.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "aspa/gated.h"
#include "tensor/row_map.h"

namespace proteus {

/// Told of every edit before the layer changes, with parameter names as in its parameters() (those
/// that begin with "../" are its block's): for the optimizer (Optimizer::map_rows).
using EditHook = std::function<void(const std::vector<RowEdit>&)>;

/// What was done; −1 where it does not apply.
struct GateEdit {
  std::string operation;    ///< "clone", "merge", "prune", "add-head", "prune-head", "re-home"
  std::int64_t gate = -1;   ///< the gate operated on, numbered as before
  std::int64_t other = -1;  ///< the gate it was merged with; the new gate of a clone
  std::int64_t head = -1;   ///< its head (the new one for re-home, the added or pruned one)
};

/// Halves a gate's mass, N and P, and appends a second gate with the same direction and prototype:
/// the layer's output stays the same. `noise` is then added to the new gate's w, as a share of
/// |w|/√R per element, drawn from `key`.
GateEdit clone_gate(Gated& layer, std::int64_t gate, double noise = 0, RngKey key = {},
                    const EditHook& hook = {});
/// Merges `other` into `gate`; both of one head. w and p become their mass-weighted means (p a unit
/// vector again), mass, N and P their sums. The change is of second order in their difference.
GateEdit merge_gates(Gated& layer, std::int64_t gate, std::int64_t other,
                     const EditHook& hook = {});
/// Drops a gate and renormalises the masses of its head. Never a head's last gate.
GateEdit prune_gate(Gated& layer, std::int64_t gate, const EditHook& hook = {});
/// Moves a gate to another head, with the mass 1/n of its n gates. Never a head's last gate.
GateEdit rehome_gate(Gated& layer, std::int64_t gate, std::int64_t head, const EditHook& hook = {});

struct NewHead {
  std::int64_t gates = 0;         ///< 0: as many as config().gates_per_head
  std::int64_t ramp_steps = 200;  ///< optimizer steps for which it comes beside the k
  double noise = 0.1;             ///< on w of its gates, as in clone_gate()
};
/// Appends a routed head (an expert) whose output projection is 0, so that the layer's output stays
/// the same. Its gates start as copies of the busiest gates; for ramp_steps it takes none of the k
/// places of a token but is entered beside them where it would have won one.
GateEdit add_head(Gated& layer, const NewHead& config, RngKey key, const EditHook& hook = {});
/// Drops a routed head and its gates, only if its use, as a share of the mean head's, is at most
/// `most_usage`; the layer must keep k heads.
GateEdit prune_head(Gated& layer, std::int64_t head, double most_usage, const EditHook& hook = {});

/// Use of every head, as a share of the mean: by the gates' N, or by the last step's load where
/// there are no prototypes. Empty if nothing is known.
std::vector<double> head_usage(const Gated& layer);

/// Largest change of the layer's output on x [B, T, C] by `edit`, as a share of its largest value,
/// in evaluation mode.
double output_change(Gated& layer, const Tensor& x, const std::function<void()>& edit);

}  // namespace proteus
