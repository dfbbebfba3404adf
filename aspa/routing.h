// The router of one layer: maps tokens to routing space and scores them against the gate table. The
// router sees gates only, never what is behind them. Formulas: tensor/ops/routing.h.
#pragma once

#include <array>
#include <vector>

#include "aspa/config.h"
#include "aspa/device_copy.h"
#include "aspa/prototypes.h"
#include "autograd/routing.h"
#include "nn/module.h"
#include "tensor/rng.h"

namespace proteus {

enum class Role : std::uint8_t { query, key };
constexpr int kRoles = 2;

/// What surgery edits of a router.
struct RouterTables {
  GateState gates;
  Tensor theta_q, theta_k;  ///< [Hr]; theta_k is undefined where there is no key role
  Tensor ramp;              ///< [Hr] i32
};

/// A few tokens of a pass and the heads that they entered, copied, to look at later.
struct RoutedSample {
  Tensor projected;  ///< x̃ [m, R]
  Tensor heads;      ///< i32 [m, k]
};

/// Where the scores s = w·x̃ + λ·cos(x̃, p) of a sample come from: sums of share·|part| over the
/// gates of its heads.
struct ScoreParts {
  double learned = 0;
  double prototype = 0;

  /// Of the prototypes; −1 where nothing was summed.
  double prototype_share() const {
    return learned + prototype > 0 ? prototype / (learned + prototype) : -1;
  }
};

/// Parameters "U" [R, C], "w" [G, R], "lambda" []; buffers "p" [G, R], "N" [G], "P" [G, R],
/// "mass" [G], "head_of_gate" [G], "starving" [G], "theta_q" and "theta_k" [Hr], "ramp" [Hr] (steps
/// for which a new head still comes beside the k), "k" [], "steps" []. Of the buffers, p, N, P and
/// starving go to a device; the others stay on the host.
class Router : public Module {
 public:
  /// `init` draws U (std 1/√(3C), that of a plain linear layer), w (std 1/√R) and the first
  /// prototypes (random directions). With one role there is no "theta_k".
  Router(const GatingConfig& config, Generator& init, int roles = kRoles);

  /// f64 for a layer in f64, f32 otherwise.
  DType dtype() const { return dtype_; }
  /// Where tokens are routed.
  Device device() const { return w_.device(); }
  /// x [B, T, C] or [B·T, C] → x̃ = U x, [B·T, R].
  Variable project(const Variable& x) const;
  /// z [N, Hr] of projected tokens, without gradient.
  Tensor logits(const Tensor& projected) const;
  /// The same, and the gate whose prototype is nearest to each token.
  ops::NearestGates logits_and_nearest(const Tensor& projected) const;
  /// z of the selected rows, with gradients to x̃, w and λ.
  RowLogitsVar row_logits(const Variable& projected, const PackedRows& rows) const;
  /// Σω and Σω·x̃ of selected rows.
  ops::GateStatistics statistics(const Tensor& projected, const PackedRows& rows,
                                 const Tensor& share) const;

  /// By the gates as they are now.
  ScoreParts score_parts(const RoutedSample& sample) const;

  /// θ of a role, [Hr], on the host; and where the tokens are.
  const Tensor& theta(Role role) const { return role == Role::query ? theta_q_ : theta_k_; }
  const Tensor& theta(Role role, Device device) const;
  /// Handles to the gate table, for prototypes and surgery.
  GateState gate_state() const;
  RouterTables tables() const { return {gate_state(), theta_q_, theta_k_, ramp_}; }
  /// Puts edited tables in place of all of these; the number of gates and heads may differ.
  void replace(const RouterTables& tables);
  /// Most gates of a head.
  std::int64_t most_gates() const;
  /// Brings what kernels read of tables on the host up to date, for a pass that is replayed.
  void renew_copies() const;
  /// Heads that compete for a token's k places, and the marks of those that do not (undefined when
  /// all do): for ops::topk_heads.
  std::int64_t established() const;
  const Tensor& extra_heads() const;
  /// Routed heads that a token enters at alpha = 1; the density controller moves it.
  std::int64_t k() const { return k_.data<std::int64_t>()[0]; }
  void set_k(std::int64_t k) const;
  /// Of scoring one token in one role: U, and a direction and a prototype per gate.
  double flops_per_token() const;
  /// Optimizer steps taken so far.
  std::int64_t steps() const { return steps_.data<std::int64_t>()[0]; }
  /// One more; new heads come one step nearer to competing.
  void count_step() const;
  /// U [R, C], w [G, R] and λ [] (undefined without prototypes).
  const Variable& direction() const { return U_; }
  const Variable& gate_weight() const { return w_; }
  const Variable& lambda() const { return lambda_; }

 private:
  /// The table as kernels read it. Throws ConfigError when a head has lost its last gate.
  ops::GateTensors table() const;
  void index_gates() const;
  void index_ramp() const;

  std::int64_t heads_;
  DType dtype_;
  Variable U_;
  Variable w_;
  Variable lambda_;  // undefined without prototypes
  Tensor p_, N_, P_, mass_, head_of_gate_, starving_, theta_q_, theta_k_, ramp_, k_, steps_;
  mutable DeviceCopy mass_there_, order_there_, head_begin_there_;
  mutable std::array<DeviceCopy, kRoles> theta_there_;
  // Gates by head, derived from head_of_gate_ whenever that has changed (by surgery, by loading).
  mutable Tensor order_, head_begin_;
  mutable std::int64_t most_gates_ = 1;
  mutable std::uint64_t indexed_version_ = 0;
  // The marks of new heads, derived from ramp_ in the same way.
  mutable Tensor extra_;  // i32 [Hr] of 0 and 1, undefined when all are 0
  mutable std::int64_t ramping_ = 0;
  mutable std::uint64_t ramp_version_ = 0;
};

}  // namespace proteus
