// One attention layer against the length of its sequence: time and memory, dense and ASPA at
// several alphas, forward and, where asked for, forward with backward.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "train/options.h"

namespace proteus {

/// "128..1024" (doubling), "1000,3000", or both with commas; rising. Throws ConfigError naming
/// --lengths.
std::vector<std::int64_t> sweep_lengths(std::string_view text);
/// Numbers in [0, 1]. Throws ConfigError naming --alphas.
std::vector<double> sweep_alphas(const std::vector<std::string>& texts);

/// What was measured of one layer at one length. What is not known has no value.
struct SweepRow {
  std::int64_t length = 0;  ///< T
  std::int64_t batch = 1;   ///< B
  std::string arm;          ///< "dense" or "aspa"
  std::optional<double> alpha;
  std::optional<double> fwd_ms;     ///< evaluation mode, no gradients
  std::optional<double> fwdbwd_ms;  ///< training mode, gradients of x and of all parameters
  /// The most bytes of tensors that were live at once: x, weights and gradients are among them.
  std::optional<std::int64_t> peak_memory_bytes;
  double attention_flops_per_token = 0;
  std::optional<double> active_heads;       ///< heads that a token enters, shared ones included
  std::optional<std::int64_t> kept_tokens;  ///< of B·T, in at least one routed head
  std::optional<double> max_vio;            ///< max load / mean load − 1, the worse of both roles
  bool dense = false;  ///< every query sees everything before it, in every head
  std::string error;   ///< why nothing was measured

  std::string name() const;  ///< "dense", "aspa 0.5"
  /// Of the longest work that was measured: with the backward where there is one.
  std::optional<double> ms() const { return fwdbwd_ms ? fwdbwd_ms : fwd_ms; }
};

/// Measures every arm at every length, the short ones first; `done` gets every row as it comes, and
/// returning false from it ends the sweep. A length that needs more memory than there is, or more
/// time than --point-seconds, has its row with an error, and the sweep goes on: the time is
/// foreseen from the lengths before. Throws what the layers throw otherwise.
void sweep(const Options& options, const std::function<bool(const SweepRow&)>& done);

/// Slope of log time to log length by least squares over the last lengths of an arm, those of at
/// least a sixteenth of its longest: 1 is linear, 2 quadratic. `time` picks the time. None with
/// fewer than two.
using SweepTime = std::function<std::optional<double>(const SweepRow&)>;
std::optional<double> sweep_slope(const std::vector<SweepRow>& rows, const std::string& name,
                                  const SweepTime& time);
/// The length from which on the arm `name` is faster than the dense one at every length that both
/// were measured at, between two lengths on a line in log-log. None if it is not at the longest.
std::optional<double> sweep_crossover(const std::vector<SweepRow>& rows, const std::string& name,
                                      const SweepTime& time);

}  // namespace proteus
