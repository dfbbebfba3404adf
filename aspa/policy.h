// When to operate on gates during training: one proposal per layer at a time, out of what the
// router has counted. Dead gates are pruned, near copies within a head merged, and the busiest gate
// cloned while use is uneven.
#pragma once

#include <optional>
#include <string>

#include "aspa/surgery.h"

namespace proteus {

struct GatePolicy {
  /// Cosine of both w and p of two gates of a head. They must be used less together than half of
  /// what makes a gate be cloned, or a clone would be merged again.
  double merge_above = 0.98;
  double clone_above = 3;       ///< N of a gate over the mean N
  double clone_entropy = 0.9;   ///< of N over all gates, as a share of log G: cloned below it
  std::int64_t most_gates = 0;  ///< of a layer; 0: twice as many as it began with
  double noise = 0.01;          ///< of clones, see clone_gate()
};

struct GateProposal {
  std::string operation;  ///< "prune", "merge" or "clone"
  std::int64_t gate = -1;
  std::int64_t other = -1;
  std::string why;
};

/// Nothing to do, or the most urgent operation. Needs prototypes: without them nothing is counted.
std::optional<GateProposal> propose(const GatePolicy& policy, const Gated& layer);
/// Does it; `key` draws a clone's noise.
GateEdit apply(const GatePolicy& policy, const GateProposal& proposal, Gated& layer, RngKey key,
               const EditHook& hook);

/// Entropy of how often gates are taken (N), as a share of log G: 1 is even.
double gate_entropy(const GateState& gates);

}  // namespace proteus
