#include "aspa/balance.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "tensor/error.h"

namespace proteus {
namespace {

double sign(double x) { return x > 0 ? 1.0 : x < 0 ? -1.0 : 0.0; }

void move(const Tensor& theta, const std::vector<double>& load, double u) {
  const double mean =
      std::accumulate(load.begin(), load.end(), 0.0) / static_cast<double>(load.size());
  dispatch_float(theta.dtype(), "update_thresholds", [&](auto tag) {
    using T = typename decltype(tag)::type;
    T* at = theta.data<T>();
    for (std::size_t h = 0; h < load.size(); ++h) {
      at[h] = T(static_cast<double>(at[h]) + u * sign(load[h] - mean));
    }
  });
  theta.bump_version();
}

// Moves both thresholds of a head towards their mean until they are at most `gap` apart.
void limit_gap(const Tensor& theta_q, const Tensor& theta_k, double gap) {
  dispatch_float(theta_q.dtype(), "update_thresholds", [&](auto tag) {
    using T = typename decltype(tag)::type;
    T* q = theta_q.data<T>();
    T* k = theta_k.data<T>();
    for (std::int64_t h = 0; h < theta_q.numel(); ++h) {
      const double a = static_cast<double>(q[h]);
      const double b = static_cast<double>(k[h]);
      if (std::abs(a - b) <= gap) continue;
      const double mean = (a + b) / 2;
      q[h] = T(mean + (a > b ? gap : -gap) / 2);
      k[h] = T(mean - (a > b ? gap : -gap) / 2);
    }
  });
}

}  // namespace

void update_thresholds(const BalanceConfig& config, double rate, const RoleLoads& loads,
                       const Tensor& theta_q, const Tensor& theta_k) {
  if (!config.enabled || loads.query.empty()) return;
  const double u = config.follow_rate ? config.u * rate : config.u;
  move(theta_q, loads.query, u);
  if (!theta_k.defined()) return;
  move(theta_k, loads.key, u);
  limit_gap(theta_q, theta_k, config.max_role_gap);
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
