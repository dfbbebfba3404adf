// What a layer reports about its routing after a training step.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace proteus {

struct RoleTelemetry {
  std::vector<double> load;  ///< [Hr] share of the tokens that entered each head
  double max_vio = 0;        ///< max load / mean load − 1
  double entropy = 0;        ///< of the load, as a share of log Hr: 1 is even
  double heads = 0;          ///< routed heads that a token entered, on average
  double kept = 1;           ///< share of the tokens that entered any
};

/// Loads summed over a whole evaluation.
struct LoadTally {
  RoleTelemetry query, key;
  RoleTelemetry both;  ///< rows of both roles together: what a head's products cost
};

/// What the density controller did.
struct DensityDecision {
  std::int64_t step = 0;
  double density = 0;  ///< that it saw
  std::int64_t k_before = 0, k_after = 0;
};

struct AspaTelemetry {
  std::int64_t steps = 0;  ///< optimizer steps seen
  double alpha = 0;
  std::int64_t k = 0;  ///< most routed heads per token and role at this alpha
  double density = 0;  ///< heads that tokens entered / Hr, mean of both roles; k / Hr before a step
  RoleTelemetry query;  ///< of the last step
  RoleTelemetry key;
  std::int64_t dead_gates = 0;  ///< starving for as long as makes a gate dead
  std::int64_t revived = 0;     ///< gates brought back by the last step
  double lambda = 0;
  /// Share of (token, head) choices on the probe batch that changed since the previous probe; −1
  /// before there were two.
  double churn_query = -1;
  double churn_key = -1;
  std::optional<LoadTally> tally;           ///< of the last begin_tally() … end_tally()
  std::optional<DensityDecision> decision;  ///< of the last step
};

}  // namespace proteus
