#include "aspa/balance.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "tensor/error.h"

namespace proteus {
namespace {

double sign(double x) { return x > 0 ? 1.0 : x < 0 ? -1.0 : 0.0; }

// load − mean load of every head; zeros where there are no loads.
std::vector<double> over_mean(const std::vector<double>& load, std::size_t heads) {
  std::vector<double> over(heads);
  if (load.empty()) return over;
  const double mean =
      std::accumulate(load.begin(), load.end(), 0.0) / static_cast<double>(load.size());
  for (std::size_t h = 0; h < heads; ++h) over[h] = load[h] - mean;
  return over;
}

}  // namespace

void update_thresholds(const BalanceConfig& config, double rate, const RoleLoads& loads,
                       const Tensor& theta_q, const Tensor& theta_k) {
  if (!config.enabled || loads.query.empty()) return;
  const double u = config.follow_rate ? config.u * rate : config.u;
  const double gap = config.max_role_gap;
  const std::size_t heads = loads.query.size();
  const std::vector<double> over_q = over_mean(loads.query, heads);
  const std::vector<double> over_k = over_mean(loads.key, heads);
  dispatch_float(theta_q.dtype(), "update_thresholds", [&](auto tag) {
    using T = typename decltype(tag)::type;
    T* q = theta_q.data<T>();
    T* k = theta_k.defined() ? theta_k.data<T>() : nullptr;
    for (std::size_t h = 0; h < heads; ++h) {
      const auto theta = static_cast<double>(q[h]);
      if (!k) {
        q[h] = T(theta + u * sign(over_q[h]));
        continue;
      }
      const double middle =
          (theta + static_cast<double>(k[h])) / 2 + u * sign(over_q[h] + over_k[h]);
      const double apart =
          theta - static_cast<double>(k[h]) + u * (sign(over_q[h]) - sign(over_k[h]));
      const double half = std::clamp(apart, -gap, gap) / 2;
      q[h] = T(middle + half);
      k[h] = T(middle - half);
    }
  });
  theta_q.bump_version();
  if (theta_k.defined()) theta_k.bump_version();
}

RoleTelemetry describe_load(std::vector<double> load) {
  RoleTelemetry out;
  double sum = 0;
  double top = 0;
  for (const double l : load) {
    sum += l;
    top = std::max(top, l);
  }
  const auto n = static_cast<double>(load.size());
  out.heads = sum;
  if (sum > 0) {
    out.max_vio = top * n / sum - 1;
    for (const double l : load) {
      if (l > 0) out.entropy -= l / sum * std::log(l / sum);
    }
    out.entropy = load.size() > 1 ? out.entropy / std::log(n) : 1.0;
  }
  out.load = std::move(load);
  return out;
}

double churn(const Tensor& before, const Tensor& after) {
  if (before.rank() != 2 || after.rank() != 2 || before.size(0) != after.size(0)) {
    throw ShapeError(
        fmt::format("churn(before, after): after: expected [{}, k] (the tokens of before), got {}",
                    before.rank() == 2 ? before.size(0) : 0, to_string(after.shape())));
  }
  const std::int64_t old_k = before.size(1);
  const std::int64_t new_k = after.size(1);
  const auto* old_heads = before.data<std::int32_t>();
  const auto* new_heads = after.data<std::int32_t>();
  std::int64_t choices = 0;
  std::int64_t changed = 0;
  for (std::int64_t n = 0; n < after.size(0); ++n) {
    const auto* from = old_heads + n * old_k;
    for (std::int64_t j = 0; j < new_k; ++j) {
      const std::int32_t head = new_heads[n * new_k + j];
      if (head < 0) continue;
      ++choices;
      if (std::find(from, from + old_k, head) == from + old_k) ++changed;
    }
  }
  return choices ? static_cast<double>(changed) / static_cast<double>(choices) : 0.0;
}

}  // namespace proteus
