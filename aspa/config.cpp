#include "aspa/config.h"

#include <fmt/format.h>

#include <cmath>

#include "tensor/error.h"

namespace proteus {
namespace {

void at_least(const char* name, std::int64_t value, std::int64_t least) {
  if (value < least) {
    throw ConfigError(fmt::format("aspa: {}: expected at least {}, got {}", name, least, value));
  }
}

void within(const char* name, double value, double low, double high) {
  if (!(value >= low && value <= high)) {
    throw ConfigError(
        fmt::format("aspa: {}: expected a number in [{}, {}], got {}", name, low, high, value));
  }
}

void check_routed(const AspaConfig& c) {
  at_least("k", c.k, 1);
  if (c.k > c.routed_heads) {
    throw ConfigError(
        fmt::format("aspa: k: expected at most {} (= routed_heads), got {}", c.routed_heads, c.k));
  }
  at_least("k_min", c.k_min, 1);
  if (c.top_p < 1 && c.k_min > c.k) {
    throw ConfigError(fmt::format("aspa: k_min: expected at most {} (= k), got {}", c.k, c.k_min));
  }
  if (!(c.top_p > 0 && c.top_p <= 1)) {
    throw ConfigError(fmt::format("aspa: top_p: expected a number in (0, 1], got {}", c.top_p));
  }
  at_least("window", c.window, 1);
  at_least("gates_per_head", c.gates_per_head, 1);
  at_least("routing_width", c.routing_width, 1);
}

}  // namespace

void AspaConfig::validate() const {
  at_least("width", width, 1);
  at_least("head_width", head_width, 1);
  at_least("shared_heads", shared_heads, 0);
  at_least("routed_heads", routed_heads, 0);
  if (heads() == 0) {
    throw ConfigError("aspa: shared_heads and routed_heads: expected at least one head, got 0 + 0");
  }
  if (shared_heads > 0) at_least("shared_window", shared_window, 1);
  at_least("anchors", anchors, 0);
  if (routed_heads > 0) check_routed(*this);
  within("alpha", alpha, 0, 1);
  if (head_width % 2 != 0) {
    throw ConfigError(fmt::format(
        "aspa: head_width: expected an even number (rotary positions turn pairs), got {}",
        head_width));
  }
  if (routed_rope == RopeSpan::half && routed_heads > 0 && head_width % 4 != 0) {
    throw ConfigError(fmt::format(
        "aspa: head_width: expected a multiple of 4 (half of it is rotated in pairs), got {}",
        head_width));
  }
  within("dropout", dropout, 0, 0.999);
  within("balance.u", balance.u, 0, 10);
  within("balance.max_role_gap", balance.max_role_gap, 0, 1e9);
  within("prototypes.ema", prototypes.ema, 0, 1);
  within("prototypes.dead_share", prototypes.dead_share, 0, 1);
  at_least("prototypes.dead_steps", prototypes.dead_steps, 1);
  within("prototypes.clone_noise", prototypes.clone_noise, 0, 1);
  within("salience.ema", salience.ema, 0, 1);
  at_least("salience.guard", salience.guard, 0);
  within("density.target", density.target, 0, 1);
  within("density.tolerance", density.tolerance, 0, 1);
  at_least("density.k_min", density.k_min, 1);
  at_least("density.k_max", density.k_max, 0);
  at_least("density.every", density.every, 1);
  if (density.target > 0 && density.k_max > 0 && density.k_max < density.k_min) {
    throw ConfigError(
        fmt::format("aspa: density.k_max: expected at least {} (= density.k_min), "
                    "got {}",
                    density.k_min, density.k_max));
  }
  if (!(salience.keep > 0 && salience.keep <= 1)) {
    throw ConfigError(
        fmt::format("aspa: salience.keep: expected a number in (0, 1], got {}", salience.keep));
  }
  if (!std::isfinite(lambda)) {
    throw ConfigError(fmt::format("aspa: lambda: expected a finite number, got {}", lambda));
  }
  if (!is_floating(dtype)) {
    throw ConfigError(
        fmt::format("aspa: dtype: expected f64, f32 or bf16, got {}", name_of(dtype)));
  }
}

}  // namespace proteus
