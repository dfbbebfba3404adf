#include "aspa/controllers.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "tensor/error.h"
#include "tensor/rng.h"
#include "tensor/tensor.h"

namespace proteus {

std::int64_t controlled_k(const DensityConfig& config, double density, std::int64_t k,
                          std::int64_t heads) {
  const double gap = density - config.target;
  if (std::abs(gap) <= config.tolerance || density <= 0) return k;
  const double per_head = density / static_cast<double>(k);  // what one head more would add
  const double after = density + (gap > 0 ? -per_head : per_head);
  if (std::abs(after - config.target) >= std::abs(gap)) return k;
  const std::int64_t most = std::min(heads, config.k_max > 0 ? config.k_max : heads);
  return std::clamp<std::int64_t>(k + (gap > 0 ? -1 : 1), std::min(config.k_min, most), most);
}

double AlphaSchedule::at(std::int64_t step) const {
  switch (kind) {
    case Kind::fixed:
      return alpha;
    case Kind::ramp:
      return alpha * std::min(1.0, static_cast<double>(step) / static_cast<double>(steps));
    case Kind::sampled: {
      constexpr std::uint64_t kStream = std::uint64_t{6} << 40;
      constexpr double kLevels = 5;
      const RngKey key{seed, kStream + static_cast<std::uint64_t>(step)};
      const double draw = Tensor::rand({1}, key, DType::f64, 0, kLevels).item();
      return alpha * std::min(std::floor(draw), kLevels - 1) / (kLevels - 1);
    }
  }
  return alpha;
}

LatencyController::LatencyController(double budget_ms, double alpha, std::int64_t window)
    : budget_ms_(budget_ms),
      first_alpha_(alpha),
      alpha_(alpha),
      first_window_(window),
      window_(window) {
  if (!(budget_ms > 0)) {
    throw ConfigError(fmt::format("latency: expected a budget above 0 ms, got {}", budget_ms));
  }
}

std::optional<LatencyController::Decision> LatencyController::observe(double ms) {
  sum_ms_ += ms;
  if (++tokens_ < kTokens) return std::nullopt;
  const double mean = sum_ms_ / static_cast<double>(tokens_);
  sum_ms_ = 0;
  tokens_ = 0;
  const double alpha = alpha_;
  const std::int64_t window = window_;
  if (mean > budget_ms_) {
    if (alpha_ < 1) {
      alpha_ = std::min(1.0, alpha_ + kStep);
    } else {
      window_ = std::max(std::min(kLeastWindow, window_), window_ / 2);
    }
  } else if (mean < 0.6 * budget_ms_) {
    if (window_ < first_window_) {
      window_ = std::min(first_window_, window_ * 2);
    } else {
      alpha_ = std::max(first_alpha_, alpha_ - kStep);
    }
  }
  if (alpha_ == alpha && window_ == window) return std::nullopt;
  return Decision{alpha_, window_,
                  fmt::format("{:.3f} ms per token, budget {:.3f} ms", mean, budget_ms_)};
}

}  // namespace proteus
