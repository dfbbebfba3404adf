#include "train/routing_log.h"

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "train/models.h"

namespace proteus {
namespace {

using nlohmann::ordered_json;

constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();  // becomes null in JSON
constexpr double kLoadDigits = 1e4;  // loads are shares of at most thousands of tokens

ordered_json role_json(const RoleTelemetry& role) {
  if (role.load.empty()) return nullptr;  // the router has not run
  ordered_json load = ordered_json::array();
  for (const double share : role.load)
    load.push_back(std::round(share * kLoadDigits) / kLoadDigits);
  return {{"load", load},
          {"maxvio", role.max_vio},
          {"entropy", role.entropy},
          {"heads", role.heads},
          {"kept", role.kept}};
}

double known(double value) { return value >= 0 ? value : kUnknown; }

}  // namespace

ordered_json RoutingLog::line(const Transformer& model) {
  const std::vector<GatedPart> parts = gated_parts(model);
  prototypes_.resize(parts.size());
  ordered_json lines;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const Gating* gates = parts[i].gated->gates();
    if (!gates) continue;
    const AspaTelemetry& t = gates->telemetry();
    ordered_json json{{"layer", parts[i].layer}, {"part", parts[i].name},
                      {"alpha", t.alpha},        {"k", t.k},
                      {"density", t.density},    {"dead_gates", t.dead_gates}};
    const bool prototypes = parts[i].own_gates() && gates->config().prototypes.enabled;
    json["lambda"] = prototypes ? t.lambda : kUnknown;
    json["prototype_share"] = known(gates->prototype_share());
    const Tensor now = prototypes ? gates->router().gate_state().p.clone() : Tensor();
    json["prototype_drift"] = known(prototype_drift(prototypes_[i], now));
    prototypes_[i] = now;
    json["query"] = role_json(t.query);
    json["key"] = role_json(t.key);
    lines.push_back(json);
  }
  return lines;
}

}  // namespace proteus
