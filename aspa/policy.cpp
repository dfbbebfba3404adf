#include "aspa/policy.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

namespace proteus {
namespace {

double cosine(const std::vector<double>& rows, std::int64_t R, std::int64_t a, std::int64_t b) {
  double ab = 0;
  double aa = 0;
  double bb = 0;
  for (std::int64_t r = 0; r < R; ++r) {
    const double x = rows[static_cast<std::size_t>(a * R + r)];
    const double y = rows[static_cast<std::size_t>(b * R + r)];
    ab += x * y;
    aa += x * x;
    bb += y * y;
  }
  return aa > 0 && bb > 0 ? ab / std::sqrt(aa * bb) : 0;
}

std::optional<GateProposal> dead(const Gated& layer, const GateState& gates) {
  const auto* head = gates.head_of_gate.data<std::int32_t>();
  const PrototypeConfig& config = layer.gating().config().prototypes;
  for (const std::int64_t gate : dead_gates(config, gates)) {
    if (std::count(head, head + gates.N.numel(), head[gate]) == 1) continue;
    return GateProposal{"prune", gate, -1,
                        fmt::format("dead: under {} of the mean use for {} steps",
                                    config.dead_share, gates.starving.select(0, gate).item())};
  }
  return std::nullopt;
}

std::optional<GateProposal> twins(const GatePolicy& policy, const GateState& gates) {
  const std::int64_t G = gates.w.size(0);
  const std::int64_t R = gates.w.size(1);
  const auto w = gates.w.to_vector();
  const auto p = gates.p.to_vector();
  const auto N = gates.N.to_vector();
  const auto* head = gates.head_of_gate.data<std::int32_t>();
  const double mean = std::accumulate(N.begin(), N.end(), 0.0) / static_cast<double>(G);
  const double most = policy.clone_above / 2 * mean;
  GateProposal best;
  double nearest = policy.merge_above;
  for (std::int64_t a = 0; a < G; ++a) {
    for (std::int64_t b = a + 1; b < G; ++b) {
      const double use = N[static_cast<std::size_t>(a)] + N[static_cast<std::size_t>(b)];
      if (head[a] != head[b] || use > most) continue;
      const double alike = std::min(cosine(w, R, a, b), cosine(p, R, a, b));
      if (!(alike > nearest)) continue;
      nearest = alike;
      best = {"merge", a, b, fmt::format("cosine {:.4f} of w and p", alike)};
    }
  }
  return best.gate < 0 ? std::nullopt : std::optional(best);
}

std::optional<GateProposal> busy(const GatePolicy& policy, const Gated& layer,
                                 const GateState& gates) {
  const auto G = gates.N.numel();
  const std::int64_t most =
      policy.most_gates > 0 ? policy.most_gates : 2 * layer.gating().config().gates();
  const double entropy = gate_entropy(gates);
  if (G >= most || entropy >= policy.clone_entropy) return std::nullopt;
  const auto N = gates.N.to_vector();
  const double mean = std::accumulate(N.begin(), N.end(), 0.0) / static_cast<double>(G);
  const auto top = std::max_element(N.begin(), N.end());
  if (!(*top > policy.clone_above * mean)) return std::nullopt;
  return GateProposal{
      "clone", top - N.begin(), -1,
      fmt::format("{:.1f} times the mean use, entropy {:.3f}", *top / mean, entropy)};
}

}  // namespace

double gate_entropy(const GateState& gates) {
  const auto N = gates.N.to_vector();
  const double sum = std::accumulate(N.begin(), N.end(), 0.0);
  if (N.size() < 2 || !(sum > 0)) return 1;
  double entropy = 0;
  for (const double n : N) {
    if (n > 0) entropy -= n / sum * std::log(n / sum);
  }
  return entropy / std::log(static_cast<double>(N.size()));
}

std::optional<GateProposal> propose(const GatePolicy& policy, const Gated& layer) {
  const GateState gates = layer.gating().router().gate_state();
  if (!gates.N.defined()) return std::nullopt;
  if (auto proposal = dead(layer, gates)) return proposal;
  if (auto proposal = twins(policy, gates)) return proposal;
  return busy(policy, layer, gates);
}

GateEdit apply(const GatePolicy& policy, const GateProposal& proposal, Gated& layer, RngKey key,
               const EditHook& hook) {
  if (proposal.operation == "prune") return prune_gate(layer, proposal.gate, hook);
  if (proposal.operation == "merge") {
    return merge_gates(layer, proposal.gate, proposal.other, hook);
  }
  return clone_gate(layer, proposal.gate, policy.noise, key, hook);
}

}  // namespace proteus
