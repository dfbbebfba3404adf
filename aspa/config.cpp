#include "aspa/config.h"

#include <fmt/format.h>

#include <cmath>

#include "aspa/slider.h"
#include "tensor/error.h"

namespace proteus {
namespace {

/// Checks that begin their messages with the kind of layer.
struct Check {
  const char* layer;

  void at_least(const char* name, std::int64_t value, std::int64_t least) const {
    if (value >= least) return;
    throw ConfigError(
        fmt::format("{}: {}: expected at least {}, got {}", layer, name, least, value));
  }
  void within(const char* name, double value, double low, double high) const {
    if (value >= low && value <= high) return;
    throw ConfigError(fmt::format("{}: {}: expected a number in [{}, {}], got {}", layer, name, low,
                                  high, value));
  }
  void share(const char* name, double value) const {
    if (value > 0 && value <= 1) return;
    throw ConfigError(
        fmt::format("{}: {}: expected a number in (0, 1], got {}", layer, name, value));
  }
};

}  // namespace

void GatingConfig::check_gates(const char* layer) const {
  const Check check{layer};
  check.at_least("width", width, 1);
  check.within("alpha", alpha, 0, 1);
  if (routed_heads > 0) {
    check.at_least("k", k, 1);
    if (k > routed_heads) {
      throw ConfigError(fmt::format("{}: k: expected at most {} (= routed_heads), got {}", layer,
                                    routed_heads, k));
    }
    check.at_least("k_min", k_min, 1);
    if (top_p < 1 && k_min > k) {
      throw ConfigError(
          fmt::format("{}: k_min: expected at most {} (= k), got {}", layer, k, k_min));
    }
    check.share("top_p", top_p);
    check.at_least("gates_per_head", gates_per_head, 1);
    check.at_least("routing_width", routing_width, 1);
  }
  check.within("balance.u", balance.u, 0, 10);
  check.within("balance.max_role_gap", balance.max_role_gap, 0, 1e9);
  check.within("prototypes.ema", prototypes.ema, 0, 1);
  check.within("prototypes.dead_share", prototypes.dead_share, 0, 1);
  check.at_least("prototypes.dead_steps", prototypes.dead_steps, 1);
  check.within("prototypes.clone_noise", prototypes.clone_noise, 0, 1);
  check.within("salience.ema", salience.ema, 0, 1);
  check.at_least("salience.guard", salience.guard, 0);
  check.share("salience.keep", salience.keep);
  check.within("density.target", density.target, 0, 1);
  check.within("density.tolerance", density.tolerance, 0, 1);
  check.at_least("density.k_min", density.k_min, 1);
  check.at_least("density.k_max", density.k_max, 0);
  check.at_least("density.every", density.every, 1);
  if (density.target > 0 && density.k_max > 0 && density.k_max < density.k_min) {
    throw ConfigError(
        fmt::format("{}: density.k_max: expected at least {} (= density.k_min), got {}", layer,
                    density.k_min, density.k_max));
  }
  if (leaky_selection && (top_p < 1 || salience.enabled())) {
    throw ConfigError(fmt::format(
        "{}: leaky_selection: expected top_p 1 and salience.keep 1 beside it: heads choose their "
        "tokens",
        layer));
  }
  if (!std::isfinite(lambda)) {
    throw ConfigError(fmt::format("{}: lambda: expected a finite number, got {}", layer, lambda));
  }
  if (!is_floating(dtype)) {
    throw ConfigError(
        fmt::format("{}: dtype: expected f64, f32 or bf16, got {}", layer, name_of(dtype)));
  }
}

bool AspaConfig::selects_everything(std::int64_t T) const {
  if (alpha == 0) return true;
  return k == routed_heads && top_p >= 1 && !salience.enabled() && !leaky_selection &&
         T <= window && !query_gate && !key_bias && slider::bank_slots(alpha, bank.slots) == 0;
}

void AspaConfig::validate() const {
  check_gates("aspa");
  const Check check{"aspa"};
  check.at_least("head_width", head_width, 1);
  check.at_least("shared_heads", shared_heads, 0);
  check.at_least("routed_heads", routed_heads, 0);
  if (heads() == 0) {
    throw ConfigError("aspa: shared_heads and routed_heads: expected at least one head, got 0 + 0");
  }
  if (shared_heads > 0) check.at_least("shared_window", shared_window, 1);
  check.at_least("anchors", anchors, 0);
  if (routed_heads > 0) check.at_least("window", window, 1);
  check.at_least("bank.slots", bank.slots, 0);
  check.at_least("bank.stride", bank.stride, 1);
  check.within("bank.delta", bank.delta, 0, 1);
  check.within("bank.delta_v", bank.delta_v, 0, 1);
  if ((shared_rope || routed_rope != RopeSpan::none) && head_width % 2 != 0) {
    throw ConfigError(fmt::format(
        "aspa: head_width: expected an even number (rotary positions turn pairs), got {}",
        head_width));
  }
  if (routed_rope == RopeSpan::half && routed_heads > 0 && head_width % 4 != 0) {
    throw ConfigError(fmt::format(
        "aspa: head_width: expected a multiple of 4 (half of it is rotated in pairs), got {}",
        head_width));
  }
  check.within("dropout", dropout, 0, 0.999);
}

void GatedMlpConfig::validate() const {
  const Check check{"gated mlp"};
  check.at_least("routed_heads", routed_heads, 1);
  check.at_least("expert_width", expert_width, 1);
  check.at_least("shared_width", shared_width, 0);
  check_gates("gated mlp");
  if (salience.enabled()) {
    throw ConfigError(fmt::format(
        "gated mlp: salience.keep: expected 1, got {}; every token enters experts (an MLP is what "
        "a token that skips routed heads has left), keep < 1 is for attention",
        salience.keep));
  }
}

}  // namespace proteus
