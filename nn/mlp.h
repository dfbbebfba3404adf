// The feed-forward half of a block. `FeedForward` is what a block expects; `Mlp` is the dense one:
//   gelu:   y = W_2 gelu(W_1 x)                        hidden width 4·C
//   swiglu: y = W_2 (silu(W_g x) ⊙ W_1 x)              hidden width 8/3·C  (Shazeer,
//   arXiv:2002.05202)
#pragma once

#include "nn/module.h"
#include "tensor/rng.h"

namespace proteus {

enum class MlpKind { gelu, swiglu };

class FeedForward : public Module {
 public:
  /// x and the result are [B, T, C], or [B, C] for one token of every sequence. Every token is
  /// mapped by itself.
  virtual Variable forward(const Variable& x) = 0;
  /// See Attention::forward_onto.
  virtual Variable forward_onto(const Variable& x, const Variable& residual);
  /// Floating-point operations of all products of one token (forward; a multiply-add counts two).
  virtual double flops_per_token() const = 0;
  /// Parameters that one token uses.
  virtual std::int64_t active_parameter_count() const { return parameter_count(); }
  /// See Attention::after_step; called after that of the block's attention.
  virtual void after_step(double rate) { static_cast<void>(rate); }
};

/// The usual hidden width: 4·C, for swiglu 8/3·C rounded up to a multiple of 32.
std::int64_t usual_mlp_width(MlpKind kind, std::int64_t width);

class Mlp : public FeedForward {
 public:
  /// `hidden` = 0 takes the usual width.
  Mlp(MlpKind kind, std::int64_t width, std::int64_t hidden, bool bias, double output_std,
      Generator& init, DType dtype = DType::f32);

  Variable forward(const Variable& x) override { return forward_onto(x, {}); }
  Variable forward_onto(const Variable& x, const Variable& residual) override;
  double flops_per_token() const override;

 private:
  MlpKind kind_;
  Variable up_weight_;    // [hidden, C]
  Variable up_bias_;      // [hidden] or undefined
  Variable gate_weight_;  // [hidden, C], swiglu only
  Variable down_weight_;  // [C, hidden]
  Variable down_bias_;    // [C] or undefined
};

}  // namespace proteus
