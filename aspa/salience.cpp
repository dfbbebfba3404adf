#include "aspa/salience.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "aspa/slider.h"
#include "autograd/salience.h"

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
  tau_[0] = add_buffer("tau_q", Tensor::full({kLevels}, kUnset, DType::f64));
  tau_[1] = add_buffer("tau_k", Tensor::full({kLevels}, kUnset, DType::f64));
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

Tensor Salience::keep_counts(Role role, const Tensor& scores, const Tensor& time, double alpha,
                             std::int64_t k, const Tensor& count) const {
  const double tau = threshold(role, alpha);
  Tensor out = Tensor::full({scores.numel()}, static_cast<double>(k), DType::i32);
  if (count.defined()) out.copy_(count);
  const Tensor host = scores.to(DType::f64);
  for (std::int64_t n = 0; n < host.numel(); ++n) {
    const bool guarded = time.data<std::int32_t>()[n] < config_.guard;
    if (!guarded && !(host.data<double>()[n] > tau)) out.data<std::int32_t>()[n] = 0;
  }
  return out;
}

void Salience::collect(Role role, const Tensor& scores) {
  std::vector<double> sorted = scores.to_vector();
  if (sorted.empty()) return;
  std::sort(sorted.begin(), sorted.end());
  const auto r = static_cast<std::size_t>(role);
  for (int level = 0; level < kLevels; ++level) {
    const double share = 1 - slider::keep(level_alpha(level), config_.keep);
    const double at = share * static_cast<double>(sorted.size() - 1);
    sums_[r][static_cast<std::size_t>(level)] += sorted[static_cast<std::size_t>(at)];
  }
  ++batches_[r];
}

void Salience::after_step(double rate) {
  for (std::size_t r = 0; r < kRoles; ++r) {
    if (batches_[r] == 0) continue;
    double* tau = tau_[r].data<double>();
    for (int level = 0; level < kLevels; ++level) {
      const double quantile =
          sums_[r][static_cast<std::size_t>(level)] / static_cast<double>(batches_[r]);
      const double step = tau[level] == kUnset ? 1 : (1 - config_.ema) * rate;
      tau[level] += step * (quantile - tau[level]);
    }
    tau_[r].bump_version();
  }
  sums_ = {};
  batches_ = {};
}

}  // namespace proteus
