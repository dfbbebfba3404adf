// The ASPA layer: shared heads that always run over a window, and routed heads that a token enters
// only where its gates send it. Symbols and formulas: docs/aspa.md.
//   y_t = W_O^shared·concat(shared heads) + Σ_{h ∈ sel^Q(t)} r_{t,h}·W_O^h·o_{t,h}
// Parameters: "qkv.weight" [3·Hs·D, C], "out.weight" [C, Hs·D], "shared_gate.weight" [Hs, C],
// "routed.q", "routed.k", "routed.v" [Hr, C, D], "routed.o" [Hr, D, C], "sink" [Hr], "mu" [C], the
// router's ("router.U", …) and those of token salience ("salience.v", …). With biases "qkv.bias"
// [3·Hs·D], "routed.q_bias", "routed.k_bias", "routed.v_bias" [Hr, D] and "out.bias" [C], which is
// added once. Absent heads and options have no parameters.
#pragma once

#include <array>
#include <memory>
#include <optional>
#include <vector>

#include "aspa/bank.h"
#include "aspa/config.h"
#include "aspa/gated.h"
#include "aspa/selection.h"
#include "aspa/top_a.h"
#include "nn/attention.h"
#include "tensor/ops/attention.h"
#include "tensor/ops/elementwise.h"
#include "tensor/queue.h"

namespace proteus {

/// Handles to the layer's parameters, undefined where it has none. For the reference and for
/// surgery.
struct AspaWeights {
  Variable qkv, out, shared_gate;
  Variable q, k, v, o, sink;
  Variable mu;
  Variable qkv_bias, q_bias, k_bias, v_bias, out_bias;
};

/// Every row its token times the matrix of its head, plus the bias of its head, which is a product
/// with 1: x [N, C], weight [Hr, C, D], bias [Hr, D] or undefined → [M, D].
Variable head_linear(const Variable& x, const Variable& weight, const Variable& bias,
                     const PackedRows& rows);

struct BankUse;

class AspaAttention : public Attention, public Gated {
 public:
  /// `generator` draws dropout masks and must outlive the layer; `init` draws the weights. Throws
  /// ConfigError.
  AspaAttention(const AspaConfig& config, double output_std, Generator& init, Generator& generator);

  /// In training mode it also sums what after_step() needs; a recomputation by checkpoint() does
  /// not, and reuses the selection.
  Variable forward(const Variable& x) override;
  std::unique_ptr<AttentionState> make_state(CacheType cache) const override;
  /// Throws ConfigError with a forced selection.
  Tensor step(const Tensor& x, std::span<AttentionState* const> states) override;
  LayerCaches make_caches(const CacheShape& shape) const override;
  Tensor step(const Tensor& x, const LayerCaches& caches, const Tensor& positions) override;
  /// Counts the (query, key) pairs that are visited; streams of routed heads are taken to hold
  /// T·k/Hr entries, spread evenly.
  double attention_flops_per_token(std::int64_t T) const override;
  double total_flops_per_token(std::int64_t T) const override;
  /// Shared heads and router whole, of the routed heads k.
  std::int64_t active_parameter_count() const override;
  /// Moves prototypes and thresholds by what all forward passes in training mode since the last
  /// call have seen. Does nothing if there were none.
  void after_step(double rate) override;

  const AspaConfig& config() const { return config_; }
  double alpha() const override { return config_.alpha; }
  void set_alpha(double alpha) override;
  /// Entries that a routed query sees at alpha = 1. At any time, like alpha; what decoding has
  /// already forgotten does not come back. Throws ConfigError below 1.
  void set_window(std::int64_t window);
  /// Routed heads that a token enters at alpha = 1, from 1 to those that are established. Throws
  /// ConfigError.
  void set_k(std::int64_t k);
  /// Routed heads that a token enters at this alpha; with top_p the most that it may enter.
  std::int64_t k() const;
  /// Throws ConfigError if the layer has no routed heads.
  Router& router();
  const Router& router() const;
  Gating* gates() override { return gating_.get(); }
  const Gating* gates() const override { return gating_.get(); }
  Module& module() override { return *this; }
  /// nullptr where all tokens enter routed heads (config().salience).
  const Salience* salience() const { return salience_; }
  const AspaWeights& weights() const { return weights_; }
  /// Empty if the layer has no routed heads.
  const AspaTelemetry& telemetry() const;

  /// Whether forward() runs the routed heads at T tokens as dense attention, without router and
  /// packed rows: every token enters every head, sees all before it, and no gate weighs either. So
  /// at alpha = 0; and with k = Hr, a window of T or more, neither gates nor bank, in evaluation
  /// (in training prototypes and thresholds want to know what was selected). Not while a selection
  /// is forced or looked at.
  bool runs_dense(std::int64_t T) const;

  /// The heads that the tokens of x enter, without running them.
  Selection select(const Variable& x);
  /// Uses this selection instead of the router's until it is reset with nullopt.
  void force_selection(std::optional<Selection> selection);
  /// Rows that the banks of the last forward pass held, i32 [streams, strides, M] (see
  /// bank_select); undefined without a bank.
  const Tensor& bank() const { return bank_; }
  /// Between begin_probe() and end_probe() the last selection is kept; end_probe() compares it with
  /// that of the previous probe (churn). A probe is run in evaluation mode on a fixed batch.
  void begin_probe();
  void end_probe();
  /// While on, consensus() is what the routed heads said in the last forward() or step(). Outputs
  /// keep their bits. Throws ConfigError without routed heads.
  void watch_consensus(bool on);
  /// Throws ConfigError before a watched pass.
  const Consensus& consensus() const;

  /// A row of a decoding step and a head that it enters.
  struct StepPair {
    std::int64_t row;
    std::int64_t head;
  };

 private:
  struct Routed {
    RoleRouting query, key;
    RoutedRows rows;
  };
  /// What one decoding step of rows [B] was routed to.
  struct StepChoice {
    std::array<Tensor, kRoles> heads;     // i32 [B, k]
    std::array<Tensor, kRoles> z;         // [B, Hr], undefined where gates are off
    std::array<Tensor, kRoles> salience;  // [B], undefined where every token is kept
    std::vector<std::int32_t> key_gates;  // main_gates() of the keys, empty without a bank
  };
  /// What decides which packed keys the bank keeps; undefined where there is none.
  struct BankJudgement {
    Tensor share;  // [rows, gates of a head]
    Tensor score;  // orders like e = log σ(z) + log σ(S), [rows]
  };

  /// B sequences of T tokens, whose rows follow each other.
  struct Sequences {
    std::int64_t B, T;
    std::int64_t rows() const { return B * T; }
    /// Whether kernels over them leave so much of a device unused that others should run beside.
    bool few_rows() const {
      constexpr std::int64_t kFewRows = 32768;
      return rows() <= kFewRows;
    }
  };

  void make_shared(double output_std, Generator& init);
  void make_routed(double output_std, Generator& init);
  /// Of rows [B·T, C], as the functions below: what the shared heads have found, [B·T, H·D].
  Variable shared_forward(const Variable& x, const Variable& x_key, const Sequences& sequences);
  /// [B·T, C], with what the shared heads have found, unless that is undefined; `beside` finds it.
  Variable routed_forward(const Variable& x, Variable x_key, Variable& shared,
                          const Sequences& sequences, Branch& beside);
  /// Where runs_dense(T); added to `shared` [B·T, C], unless that is undefined.
  Variable dense_forward(const Variable& x, const Variable& x_key, const Variable& shared,
                         const Sequences& sequences);
  Routed route(const Variable& x, const Variable& x_key, const Sequences& sequences);
  /// `beside` makes key_bias and judgement.
  Variable routed_values(const Variable& x, Variable x_key, const RoutedRows& rows,
                         const Variable& key_bias, const BankJudgement& judgement, Branch& beside);
  /// Slots of a head's bank at this alpha.
  std::int64_t bank_slots() const;
  BankJudgement judge(const RoleRouting& key, const PackedRows& rows,
                      const RowLogitsVar& logits) const;
  BankPlan plan_bank(const RoutedRows& rows, const Tensor& k, const Tensor& v,
                     const BankJudgement& judgement);
  /// `last` are the heads of every sequence's last token.
  void keep_consensus(const Tensor& c, const std::vector<HeadOutputs>& last);
  /// The oldest of so many entries, other than anchors, that the newest query sees.
  std::int64_t first_seen(std::int64_t window, std::int64_t entries) const;
  Tensor shared_step(const Tensor& x, const Tensor& x_key, std::span<AttentionState* const> states);
  Tensor routed_step(const Tensor& x, const Tensor& x_key, std::span<AttentionState* const> states);
  Tensor shared_step(const Tensor& x, const Tensor& x_key, const LayerCaches& caches,
                     const Tensor& positions) const;
  /// Added to what the shared heads have found, unless that is undefined.
  Tensor routed_step(const Tensor& x, const Tensor& x_key, const LayerCaches& caches,
                     const Tensor& positions, const Tensor& shared) const;
  /// route() of one token of every sequence.
  RoleRouting route_step(Role role, const Tensor& in, const LayerCaches& caches,
                         const Tensor& positions) const;
  /// The gate with the largest share of every (row, head) of heads i32 [B, k], in their order.
  std::vector<std::int32_t> main_gates(const Tensor& projected, const Tensor& heads) const;
  BankUse bank_use() const;
  /// in·weight + bias of every pair's head, rotated where there are positions: [pairs, 1, D].
  template <class A>
  Tensor head_rows(const Tensor& in, const Variable& weight, const Variable& bias,
                   const std::vector<StepPair>& pairs, const Tensor& positions) const;
  template <class A>
  void append_keys(const Tensor& x, const Tensor& x_key, const StepChoice& chosen,
                   std::span<AttentionState* const> states) const;
  template <class A>
  Tensor answer_queries(const Tensor& x, const StepChoice& chosen,
                        std::span<AttentionState* const> states);
  AttentionOptions attention_options();
  /// Of what the shared heads have found.
  RowFactor gate_factor() const;
  std::int64_t rotated_width() const;
  const Tensor& visible_entries(std::int64_t T, Device device);

  AspaConfig config_;
  Generator& generator_;
  AspaWeights weights_;
  Router* router_ = nullptr;
  Salience* salience_ = nullptr;
  std::unique_ptr<Gating> gating_;  // of the routed heads, null without any
  bool watching_ = false;
  std::optional<Consensus> consensus_;
  LastCausalPlan shared_plan_;
  LastCausalPlan dense_plan_;
  Tensor visible_;  // [T + 1] of visible_entries, for visible_alpha_
  Tensor forced_bank_;
  Tensor bank_;
  double visible_alpha_ = -1;
};

}  // namespace proteus
