#include "aspa/salience.h"

#include <algorithm>
#include <vector>

#include "aspa/slider.h"
#include "autograd/salience.h"
#include "tensor/ops/select.h"

namespace proteus {
namespace {

constexpr double kUnset = -1e30;  // no batch seen yet: every token is kept

double level_alpha(int level) { return level / static_cast<double>(Salience::kLevels - 1); }

}  // namespace

// v starts small beside κ = 1, but not at zero: without prototypes equal scores would all be
// skipped together.
Salience::Salience(const GatingConfig& c, Generator& init) : config_(c.salience) {
  const DType dtype = c.dtype == DType::f64 ? DType::f64 : DType::f32;
  const double std = 1 / static_cast<double>(c.routing_width);
  v_ = add_parameter("v", Tensor::randn({c.routing_width}, init.next(), dtype, 0, std), Decay::no);
  if (c.prototypes.enabled) {
    kappa_ = add_parameter("kappa", Tensor::scalar(1, dtype), Decay::no);
  }
  tau_[0] = add_buffer("tau_q", Tensor::full({kLevels}, kUnset, DType::f64), Home::host);
  tau_[1] = add_buffer("tau_k", Tensor::full({kLevels}, kUnset, DType::f64), Home::host);
}

Variable Salience::scores(const Variable& projected, const Tensor& p, const Tensor& nearest) const {
  return kappa_.defined() ? salience(projected, v_, p, kappa_, nearest)
                          : salience(projected, v_, {}, {}, {});
}

double Salience::threshold(Role role, double alpha) const {
  const double* tau = tau_[static_cast<std::size_t>(role)].data<double>();
  const double at = alpha * (kLevels - 1);
  const int below = std::min(static_cast<int>(at), kLevels - 2);
  const double part = at - below;
  return (1 - part) * tau[below] + part * tau[below + 1];
}

Tensor Salience::keep_counts(Role role, const Tensor& scores, const TokenTimes& times, double alpha,
                             std::int64_t k, const Tensor& count) const {
  return ops::keep_counts(scores, {threshold(role, alpha), config_.guard, times.T}, k, count,
                          times.at);
}

void Salience::collect(Role role, const Tensor& scores) {
  if (scores.numel() == 0) return;
  std::array<std::int64_t, kLevels> ranks;
  for (int level = 0; level < kLevels; ++level) {
    const double share = 1 - slider::keep(level_alpha(level), config_.keep);
    const double at = share * static_cast<double>(scores.numel() - 1);
    ranks[static_cast<std::size_t>(level)] = static_cast<std::int64_t>(at);
  }
  const auto r = static_cast<std::size_t>(role);
  const Tensor quantiles = ops::order_statistics(scores, ranks);
  if (sums_[r].defined()) {
    sums_[r].add_(quantiles);
  } else {
    sums_[r] = quantiles;
  }
  ++batches_[r];
}

void Salience::after_step(double rate) {
  for (std::size_t r = 0; r < kRoles; ++r) {
    if (batches_[r] == 0) continue;
    const std::vector<double> sums = sums_[r].to_vector();
    double* tau = tau_[r].data<double>();
    for (int level = 0; level < kLevels; ++level) {
      const double quantile =
          sums[static_cast<std::size_t>(level)] / static_cast<double>(batches_[r]);
      const double step = tau[level] == kUnset ? 1 : (1 - config_.ema) * rate;
      tau[level] += step * (quantile - tau[level]);
    }
    tau_[r].bump_version();
  }
  sums_ = {};
  batches_ = {};
}

}  // namespace proteus
