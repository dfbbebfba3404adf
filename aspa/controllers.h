// Controllers: rules that move a layer's budgets. The density controller moves k during training,
// the latency controller alpha and the window at inference; alpha can follow a schedule. All are
// pure functions of what they are given, so that runs repeat.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "aspa/config.h"

namespace proteus {

/// k one step nearer to the target when the density (heads that tokens entered, as a share of all)
/// is further from it than the tolerance and one head more or less is nearer; within [k_min,
/// k_max].
std::int64_t controlled_k(const DensityConfig& config, double density, std::int64_t k,
                          std::int64_t heads);

/// alpha over training.
struct AlphaSchedule {
  enum class Kind : std::uint8_t {
    fixed,   ///< `alpha` throughout
    ramp,    ///< from 0 to `alpha` over `steps`, then `alpha`
    sampled  ///< each step one of 0, ¼, ½, ¾, 1 times `alpha`, drawn from the seed
  };
  Kind kind = Kind::fixed;
  double alpha = 1;
  std::int64_t steps = 1000;
  std::uint64_t seed = 1;

  /// For the step with this number, from 0.
  double at(std::int64_t step) const;
};

/// Keeps the time of a token within a budget: when the recent mean is above it, alpha rises to 1
/// and then the window of routed heads halves, down to `least_window`; when it is below 0.6 of it,
/// back in the opposite order, to where it began.
class LatencyController {
 public:
  struct Decision {
    double alpha = 0;
    std::int64_t window = 0;
    std::string why;
  };

  /// Throws ConfigError unless budget_ms > 0.
  LatencyController(double budget_ms, double alpha, std::int64_t window);
  /// To be told how long every token took; a decision comes once in kTokens.
  std::optional<Decision> observe(double ms);

 private:
  static constexpr std::int64_t kTokens = 8;
  static constexpr double kStep = 0.25;
  static constexpr std::int64_t kLeastWindow = 16;

  double budget_ms_;
  double first_alpha_, alpha_;
  std::int64_t first_window_, window_;
  double sum_ms_ = 0;
  std::int64_t tokens_ = 0;
};

}  // namespace proteus
