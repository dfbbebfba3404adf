// Token salience: which tokens enter routed heads at all (docs/aspa.md, "Which tokens are routed at
// all"). S_t = v·x̃_t + κ·max_g cos(x̃_t, p_g); in each role a token with S ≤ τ skips the routed
// heads, the first `guard` tokens of a sequence never do. τ follows the (1 − keep^α) quantile of S
// over training steps and stands still in evaluation, so that a token is judged by itself.
#pragma once

#include <array>

#include "aspa/config.h"
#include "aspa/routing.h"
#include "autograd/variable.h"
#include "nn/module.h"

namespace proteus {

/// Parameters "v" [R] and "kappa" [] (with prototypes); buffers "tau_q" and "tau_k" [5], on
/// the host: the thresholds of a role at α = 0, ¼, ½, ¾, 1.
/// The position of token n within its sequence: at[n], or n mod T where that is undefined.
struct TokenTimes {
  std::int64_t T = 1;
  Tensor at = {};  ///< i32 [N]
};

class Salience : public Module {
 public:
  static constexpr int kLevels = 5;

  Salience(const GatingConfig& config, Generator& init);

  /// S [N] of projected tokens x̃ [N, R]; `p` [G, R] and the nearest gate i32 [N] of each token are
  /// undefined without prototypes.
  Variable scores(const Variable& projected, const Tensor& p, const Tensor& nearest) const;
  /// τ of a role at this alpha, between two levels by a straight line.
  double threshold(Role role, double alpha) const;
  /// `count` i32 [N] (k for all tokens if undefined) with 0 for the tokens that skip.
  Tensor keep_counts(Role role, const Tensor& scores, const TokenTimes& times, double alpha,
                     std::int64_t k, const Tensor& count) const;
  /// Adds the quantiles of a batch; after_step() then moves τ by their mean.
  void collect(Role role, const Tensor& scores);
  void after_step(double rate);

 private:
  SalienceConfig config_;
  Variable v_;
  Variable kappa_;  // undefined without prototypes
  std::array<Tensor, kRoles> tau_;
  std::array<Tensor, kRoles> sums_;  // f64 [kLevels] where the tokens are, undefined at first
  std::array<std::int64_t, kRoles> batches_{};
};

}  // namespace proteus
