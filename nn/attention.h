// Attention layers. `Attention` is what a transformer block expects; `DenseAttention` is exact
// causal multi-head attention (Vaswani et al., arXiv:1706.03762) with rotary positions
// (arXiv:2104.09864) and two optional extras, which are also the controls that sparse attention is
// compared with:
//   key shift:    keys read x^K_t = x_t + mu ⊙ x_{t−1}
//   output gate:  head h's output is multiplied by 2σ(W_g x)_h
#pragma once

#include <memory>

#include "nn/decode.h"
#include "nn/layer_caches.h"
#include "nn/module.h"
#include "tensor/ops/attention.h"
#include "tensor/queue.h"
#include "tensor/rng.h"

namespace proteus {

class Attention : public Module {
 public:
  /// x and the result are [B, T, C]. Position t sees positions up to t of its own sequence only.
  virtual Variable forward(const Variable& x) = 0;
  /// residual + forward(x), for a layer whose last product can add it in passing.
  virtual Variable forward_onto(const Variable& x, const Variable& residual);
  /// What the layer knows of a sequence that has not begun; `cache` is how it will keep keys and
  /// values.
  virtual std::unique_ptr<AttentionState> make_state(CacheType cache) const = 0;
  /// forward() of one more token of every sequence, in evaluation mode and without gradient: x and
  /// the result are [B, C], states[b] is the state of row b. Rows may be at different positions.
  virtual Tensor step(const Tensor& x, std::span<AttentionState* const> states) = 0;
  /// What the layer knows of sequences that have not begun and are decoded side by side on a
  /// device.
  virtual LayerCaches make_caches(const CacheShape& shape) const = 0;
  /// step() of sequences side by side, on any device: nothing waits for it, and what it does is the
  /// same at every position. x [B, C]; positions i32 [B], of the token that x is of.
  virtual Tensor step(const Tensor& x, const LayerCaches& caches, const Tensor& positions) = 0;
  /// Floating-point operations of QKᵀ and PV per token, averaged over a sequence of T (forward; a
  /// multiply-add counts two). Projections are not included.
  virtual double attention_flops_per_token(std::int64_t T) const = 0;
  /// Floating-point operations of all products of one token, projections and routing included.
  virtual double total_flops_per_token(std::int64_t T) const = 0;
  /// Parameters that one token uses (all of them for dense attention).
  virtual std::int64_t active_parameter_count() const { return parameter_count(); }
  /// Called once after every optimizer step: routing state (prototypes, thresholds) moves here.
  /// `rate` is the step's learning rate as a share of its peak.
  virtual void after_step(double rate) { static_cast<void>(rate); }
};

/// The causal plan that was asked for last. Making one takes a table of T entries, and a copy of it
/// to the device: not in every pass.
class LastCausalPlan {
 public:
  struct Key {
    std::int64_t B = 0, H = 0, T = 0;
    std::int64_t window = 0, anchors = 0;
    double alpha = 0;  ///< where the window depends on it
    Device device;

    friend bool operator==(const Key&, const Key&) = default;
  };
  /// make() where `key` differs from the one before.
  template <class F>
  const AttentionPlan& of(const Key& key, F&& make) {
    if (!plan_.lo.defined() || !(key == key_)) plan_ = make();
    key_ = key;
    for (const Tensor* t : {&plan_.segments, &plan_.lo, &plan_.hi}) keep_for_replays(*t);
    return plan_;
  }

 private:
  Key key_;
  AttentionPlan plan_;
};

struct DenseAttentionConfig {
  std::int64_t width = 0;       ///< C
  std::int64_t heads = 0;       ///< H
  std::int64_t head_width = 0;  ///< D; H·D need not equal C
  std::int64_t window = 0;      ///< keys a query sees at most; 0 = all
  bool rope = true;
  bool key_shift = false;
  bool output_gate = false;
  bool bias = false;
  double dropout = 0;        ///< of the attention weights
  DType dtype = DType::f32;  ///< f64 is for gradient checks
};

class DenseAttention : public Attention {
 public:
  /// `generator` draws dropout masks and must outlive the layer; `init` draws the weights.
  DenseAttention(const DenseAttentionConfig& config, double output_std, Generator& init,
                 Generator& generator);

  Variable forward(const Variable& x) override { return forward_onto(x, {}); }
  Variable forward_onto(const Variable& x, const Variable& residual) override;
  std::unique_ptr<AttentionState> make_state(CacheType cache) const override;
  Tensor step(const Tensor& x, std::span<AttentionState* const> states) override;
  LayerCaches make_caches(const CacheShape& shape) const override;
  Tensor step(const Tensor& x, const LayerCaches& caches, const Tensor& positions) override;
  double attention_flops_per_token(std::int64_t T) const override;
  double total_flops_per_token(std::int64_t T) const override;
  const DenseAttentionConfig& config() const { return config_; }

 private:
  DenseAttentionConfig config_;
  Generator& generator_;
  Variable qkv_weight_;   // [3·H·D, C]
  Variable qkv_bias_;     // [3·H·D] or undefined
  Variable out_weight_;   // [C, H·D]
  Variable out_bias_;     // [C] or undefined
  Variable gate_weight_;  // [H, C] or undefined
  Variable mu_;           // [C] or undefined
  LastCausalPlan plan_;
};

/// What every state begins with: the position of the next token, and the token before it for layers
/// whose keys are shifted.
struct TokenState : AttentionState {
  std::int64_t position = 0;
  Tensor previous;  ///< [C], undefined at the start

  /// x + mu ⊙ (the token before), of every row of x [B, C]; x itself without mu.
  static Tensor shifted(const Tensor& x, const Variable& mu,
                        std::span<AttentionState* const> states);
  /// i32 [B].
  static Tensor positions(std::span<AttentionState* const> states);
  /// Moves every state past its row of x.
  static void advance(const Tensor& x, std::span<AttentionState* const> states);
};

}  // namespace proteus
