// The routing of every layer as JSON, for a line of metrics.jsonl per logged step.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <vector>

#include "nn/transformer.h"

namespace proteus {

class RoutingLog {
 public:
  /// One object per layer and part with gates: layer, part, alpha, k, density, dead_gates, lambda,
  /// prototype_share, prototype_drift (since the line before; null in the first), and for each role
  /// load (per head), maxvio, entropy, heads and kept; null for a role that has none. See
  /// AspaTelemetry and Gating::prototype_share. Null for a model that routes nothing.
  nlohmann::ordered_json line(const Transformer& model);

 private:
  std::vector<Tensor> prototypes_;  // of every part, at the line before
};

}  // namespace proteus
