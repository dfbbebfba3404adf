// The gates of one layer at work: which heads a token enters in each role, what training counts
// about it, and what an optimizer step makes of that (thresholds, prototypes, dead gates, k). It
// knows nothing of what stands behind the gates.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <vector>

#include "aspa/config.h"
#include "aspa/routing.h"
#include "aspa/salience.h"
#include "aspa/telemetry.h"
#include "tensor/ops/select.h"

namespace proteus {

/// What is decided for the tokens of one role, and what its gradients need.
struct RoleRouting {
  Tensor heads;                        ///< i32 [N, k] ascending, −1 for "none" (at the end)
  Variable projected;                  ///< x̃ [N, R], undefined where gates are off
  Variable salience;                   ///< S [N], undefined where every token is kept
  ops::Slots slots = ops::Slots::any;  ///< filled: no "none" among the heads
};

/// A parameter with a row per head, for surgery.
struct HeadTable {
  std::string name;  ///< as in the layer's parameters(); "../" leads to its block
  Variable variable;
  double fresh_std = 0;  ///< of a new head's row; 0: zeros
};

class Gating {
 public:
  /// What the gates say about tokens, without gradient.
  struct Choice {
    Tensor heads;    ///< i32 [N, k]
    Tensor nearest;  ///< gate i32 [N], where salience needs it
    Tensor z;        ///< [N, Hr]
  };

  /// All three belong to the layer and outlive this; `config` is read anew by every call, for alpha
  /// and the number of heads. `salience` is null where all tokens enter.
  Gating(GatingConfig& config, Router& router, Salience* salience);
  /// Uses the gates of `owner`, which outlives this, in the query role: what is collected here
  /// counts there too, and only the owner moves them. Without salience.
  Gating(GatingConfig& config, Gating& owner);
  Gating(const Gating&) = delete;
  Gating& operator=(const Gating&) = delete;

  const GatingConfig& config() const { return config_; }
  Router& router() { return router_; }
  const Router& router() const { return router_; }
  /// Whether the gates are another layer's.
  bool follows() const { return owner_ != nullptr; }

  /// At alpha = 0 every token enters every head and every gate is off: the router does not run.
  bool gated() const { return config_.alpha > 0; }
  /// Heads that a token enters at this alpha; with top_p the most that it may enter.
  std::int64_t k() const;
  /// The same at alpha = 1, from 1 to the heads that are established. Throws ConfigError.
  void set_k(std::int64_t k);

  /// Decides for tokens [B, T], once: recomputation by checkpoint() gets the same decision.
  /// `projected` is x̃ [B·T, R], undefined unless gated().
  RoleRouting route(Role role, const Variable& projected, std::int64_t B, std::int64_t T);
  /// Whether every token enters the same number of heads, as far as the configuration tells.
  bool fills_slots() const;
  /// The decision itself. Rows that are packed afterwards may be marked: nothing waits for them.
  Choice choose(Role role, const Tensor& projected, const TokenTimes& times,
                ops::NanRows nan_rows = ops::NanRows::refuse) const;
  /// S [N] of projected tokens whose nearest gates are i32 [N].
  Variable salience_of(const Variable& projected, const Tensor& nearest) const;

  /// Packed rows y times r = (1−α) + α·2σ(z)·2σ(S), without the first factor where z is undefined.
  Variable open(const Variable& y, const Variable& z, const RoleRouting& routing,
                const PackedRows& rows) const;
  /// β = α·(log σ(z) + log 2σ(S)), likewise; undefined where both are missing.
  Variable key_bias(const Variable& z, const RoleRouting& routing, const PackedRows& rows) const;

  /// Counts a training pass of one role; `share` as in RowLogitsVar.
  void collect(Role role, const RoleRouting& routing, const PackedRows& rows, const Tensor& share);
  /// For a pass that is recorded and replayed: what it collects has the same tensors each time, and
  /// is right as long as the numbers of the host that it depends on stay.
  struct Collected;
  Collected take_collected();
  void put_collected(const Collected& collected);
  /// Undefined where the host takes part in the pass itself.
  std::optional<std::vector<double>> host_numbers() const;
  void renew_copies() const { router_.renew_copies(); }
  /// Moves thresholds, prototypes and k by what was collected since the last call. Does nothing if
  /// that is nothing.
  void after_step(double rate);
  /// Whether a training pass waits for its after_step(): gates must stay as they are.
  bool in_step() const { return counts_[0].tokens > 0; }

  /// What stands behind the gates; an owner's list has its followers' too.
  void add_table(HeadTable table);
  const std::vector<HeadTable>& tables() const { return tables_; }
  /// For surgery and for loading: a router and tables (in order of tables()) of any number of gates
  /// and heads, by consistent shapes. What was collected since the last step is dropped.
  void replace(const RouterTables& router, const std::vector<Tensor>& tables);
  /// Reports alpha and k anew.
  void refresh();
  const AspaTelemetry& telemetry() const { return telemetry_; }
  /// What prototypes contribute to the scores of the tokens that the last training pass sampled, by
  /// the gates as they are now; −1 without a sample:
  ///   Σ share·|λ·cos(x̃, p_g)| / (Σ share·|λ·cos(x̃, p_g)| + Σ share·|w_g·x̃|)
  /// over the gates of the heads that they entered, each by its share of its head, both roles.
  double prototype_share() const;
  /// Whether training passes sample tokens for prototype_share(). At any time; decides nothing.
  void set_telemetry(bool on) { config_.telemetry = on; }

  /// route() then returns these heads, i32 [N, k], until it is told undefined ones.
  void force(Role role, const Tensor& heads);
  bool forced() const { return forced_[0].defined() || forced_[1].defined(); }
  /// Whether somebody decides in route()'s place or looks at what it decides.
  bool observed() const { return forced() || probing_ || tally_.has_value(); }
  /// Between begin_probe() and end_probe() the last decision is kept; end_probe() compares it with
  /// that of the previous probe (churn).
  void begin_probe();
  void end_probe();
  /// Between begin_tally() and end_tally() the loads of all forward passes are summed;
  /// end_tally() puts them into telemetry().tally.
  void begin_tally();
  void end_tally();

 private:
  /// Of one role since the last step.
  struct Count {
    std::vector<std::int64_t> heads;  // tokens that entered each
    std::int64_t kept = 0;            // tokens that entered any
    std::int64_t tokens = 0;
    std::vector<Tensor> passes;  // [2, Hr] where the tokens are: bounds of the rows of a pass

    std::vector<double> load() const;
    /// Adds the passes to `heads`; the host waits for those on a device.
    void add_passes();
  };

  /// θ of a role with ∞ for the heads that come beside the k.
  Tensor competing(Role role, const Tensor& theta) const;
  /// S per packed row.
  Variable row_salience(const RoleRouting& routing, const PackedRows& rows) const;
  void count(Count& count, const PackedRows& rows) const;
  void sum_up(Role role, const RoleRouting& routing, const PackedRows& rows, const Tensor& share);
  void tally(Role role, const Tensor& heads);
  void learn(double rate);
  void move_prototypes(double rate);
  void report();
  void control_density();
  /// Drops what was collected and probed.
  void restart();

  GatingConfig& config_;
  Router& router_;
  Salience* salience_;
  Gating* owner_ = nullptr;
  std::vector<Gating*> followers_;
  std::vector<HeadTable> tables_;
  std::array<Count, kRoles> counts_;
  GateUpdate update_;
  std::array<RoutedSample, kRoles> samples_;  // of the last training pass
  std::array<Tensor, kRoles> forced_;
  bool probing_ = false;
  std::array<Tensor, kRoles> probe_;
  std::array<Tensor, kRoles> last_probe_;
  std::optional<std::array<Count, kRoles>> tally_;
  AspaTelemetry telemetry_;
};

struct Gating::Collected {
  std::array<Count, kRoles> counts;
  GateUpdate update;
  std::array<RoutedSample, kRoles> samples;
};

}  // namespace proteus
