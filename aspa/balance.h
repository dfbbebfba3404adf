// Keeping the load of the routed heads even without an auxiliary loss (the bias of Wang et al.,
// arXiv:2408.15664): a threshold θ_h per head and role is subtracted from z before the selection,
// and from nothing else.
#pragma once

#include <cstdint>
#include <vector>

#include "aspa/config.h"
#include "aspa/telemetry.h"
#include "tensor/tensor.h"

namespace proteus {

/// Loads of one optimizer step, as shares of its tokens; [Hr] each.
struct RoleLoads {
  std::vector<double> query;
  std::vector<double> key;
};

/// The rule, in place, with o_h = load_h − mean load of a role: the middle of a head's two
/// thresholds moves by u·rate·sign(o^Q_h + o^K_h), so that both roles together become even; their
/// difference by u·rate·(sign(o^Q_h) − sign(o^K_h)), within ± max_role_gap. The mean is k/Hr where
/// every token enters k heads. `rate` is the learning rate's share of its peak (unused unless
/// config.follow_rate). theta_q and theta_k are [Hr], f32 or f64; theta_k is undefined where there
/// is no key role: θ_h moves by u·rate·sign(o_h).
void update_thresholds(const BalanceConfig& config, double rate, const RoleLoads& loads,
                       const Tensor& theta_q, const Tensor& theta_k);

/// MaxVio and entropy of a load [Hr].
RoleTelemetry describe_load(std::vector<double> load);

/// Share of the choices in `after` that are not in `before`; both i32 [N, k] (k may differ), −1 for
/// none. 0 when there are no choices.
double churn(const Tensor& before, const Tensor& after);

}  // namespace proteus
