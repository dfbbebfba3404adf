// What an ASPA layer is made of and how it is trained. Symbols as in docs/aspa.md.
#pragma once

#include <cstdint>
#include <string>

#include "nn/mlp.h"
#include "tensor/dtype.h"
#include "tensor/ops/bank.h"

namespace proteus {

/// Which part of a routed head's width is rotated. Half leaves dimensions that match content at any
/// distance.
enum class RopeSpan : std::uint8_t { none, half, full };

/// How the selection thresholds θ move after an optimizer step (aspa/balance.h).
struct BalanceConfig {
  bool enabled = true;
  double u = 0.01;  ///< step of θ
  /// u follows the learning rate: it is multiplied by the rate's share of its peak, so that the
  /// thresholds settle with the router. Alone this does not keep what was learned; max_role_gap
  /// does.
  bool follow_rate = true;
  /// Largest difference between a head's two thresholds; 0 is one θ for both roles. Without a limit
  /// they drift apart, and a query and the key it needs stop sharing a head: a gap of 0.3 cost one
  /// seed of three a hundredth of recall's accuracy, at the price of a less even load per role.
  double max_role_gap = 0;
};

/// How prototypes follow the tokens (aspa/prototypes.h).
struct PrototypeConfig {
  bool enabled = true;
  double ema = 0.99;              ///< weight of the past in N and P
  double dead_share = 0.1;        ///< a gate is starving while N < dead_share · mean N
  std::int64_t dead_steps = 200;  ///< steps of starving after which it is dead
  /// Dead gates are pruned and come back as a clone of the busiest gate.
  bool revive = true;
  double clone_noise = 0.01;  ///< std of the noise on w of a revived gate, relative to |w|
};

/// Which tokens enter routed heads at all (aspa/salience.h).
struct SalienceConfig {
  double keep = 1;         ///< share of the tokens that do, per role, at α = 1; 1 turns it off
  std::int64_t guard = 8;  ///< the first tokens of a sequence always do
  double ema = 0.99;       ///< weight of the past in the thresholds

  bool enabled() const { return keep < 1; }
};

/// Entries that stay visible after they left the packed window (aspa/bank.h).
struct BankConfig {
  std::int64_t slots = 0;     ///< M per routed head and sequence, at α = 1; 0 turns it off
  std::int64_t stride = 256;  ///< raw time between refreshes
  double delta = 0.9;         ///< keys are alike above this cosine
  double delta_v = 0.9;       ///< values
  BankEviction eviction = BankEviction::score;
};

/// The density controller (aspa/controllers.h): moves k towards a share of heads that tokens enter.
struct DensityConfig {
  double target = 0;  ///< 0: off
  double tolerance = 0.05;
  std::int64_t k_min = 1;
  std::int64_t k_max = 0;   ///< 0: all heads
  std::int64_t every = 50;  ///< steps between decisions
};

/// Gates in front of heads, or in front of the experts of a gated MLP.
struct GatingConfig {
  std::int64_t width = 0;          ///< C
  std::int64_t routed_heads = 16;  ///< Hr
  std::int64_t k = 2;              ///< routed heads that a token enters at α = 1, per role
  /// Below 1: not k, but the fewest heads whose softmax(z − θ) reaches this mass, from k_min to k.
  double top_p = 1;
  std::int64_t k_min = 1;
  std::int64_t gates_per_head = 4;
  std::int64_t routing_width = 64;  ///< R
  double alpha = 1;                 ///< from dense (0) to linear (1)
  double lambda = 5;                ///< initial weight of the prototypes
  bool frozen_router = false;       ///< U, w, λ stay as drawn
  /// For measurement only: heads choose tokens among the whole sequence (choose_by_head). NOT
  /// causal; such a layer cannot decode.
  bool leaky_selection = false;
  BalanceConfig balance;
  PrototypeConfig prototypes;
  SalienceConfig salience;
  DensityConfig density;
  bool telemetry = true;     ///< sample tokens for reports (Gating::prototype_share)
  DType dtype = DType::f32;  ///< of activations and weights; the router is f32 (f64 with f64)
  std::uint64_t seed = 1;    ///< of the router's initial draw and of revived gates

  /// At the start; surgery may change it.
  std::int64_t gates() const { return routed_heads * gates_per_head; }

 protected:
  /// The rules that both kinds share; `layer` begins the messages.
  void check_gates(const char* layer) const;
};

struct AspaConfig : GatingConfig {
  std::int64_t head_width = 64;     ///< D
  std::int64_t shared_heads = 2;    ///< Hs
  std::int64_t shared_window = 64;  ///< w: raw time that a shared head sees at α = 1
  std::int64_t anchors = 4;         ///< A: first tokens (entries) that stay visible
  std::int64_t window = 128;        ///< W: entries of a packed stream that a query sees at α = 1
  bool key_shift = true;            ///< keys read x_t + μ ⊙ x_{t−1}
  bool bias = false;                ///< of Q, K, V and of the output, as GPT-2 has them
  bool shared_rope = true;          ///< shared heads are rotated, whole
  bool shared_gate = true;          ///< shared heads are multiplied by 2σ(W_sg x)
  bool sink = true;                 ///< routed heads have the term α·exp(a_h)
  bool query_gate = true;           ///< routed outputs are multiplied by (1−α) + α·2σ(z^Q)
  bool key_bias = true;             ///< routed keys carry α·log σ(z^K)
  RopeSpan routed_rope = RopeSpan::half;
  BankConfig bank;
  double dropout = 0;  ///< of the attention weights

  std::int64_t heads() const { return shared_heads + routed_heads; }
  /// Whether the routed heads are dense attention by definition where gates are not trained: every
  /// token enters every head, sees all of T tokens before it, and nothing weighs heads or keys.
  bool selects_everything(std::int64_t T) const;
  /// Throws ConfigError naming the option, the value and what is allowed.
  void validate() const;
};

/// A gated MLP; its heads are experts: E = routed_heads, k_e = k.
struct GatedMlpConfig : GatingConfig {
  MlpKind kind = MlpKind::gelu;
  std::int64_t expert_width = 0;  ///< F: hidden width of an expert
  std::int64_t shared_width = 0;  ///< hidden width of the shared MLP; 0: there is none

  /// Throws ConfigError naming the option, the value and what is allowed.
  void validate() const;
};

}  // namespace proteus
