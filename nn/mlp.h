// The feed-forward half of a block:
//   gelu:   y = W_2 gelu(W_1 x)                        hidden width 4·C
//   swiglu: y = W_2 (silu(W_g x) ⊙ W_1 x)              hidden width 8/3·C  (Shazeer,
//   arXiv:2002.05202)
#pragma once

#include "nn/module.h"
#include "tensor/rng.h"

namespace proteus {

enum class MlpKind { gelu, swiglu };

class Mlp : public Module {
 public:
  /// `hidden` = 0 takes the usual width, rounded up to a multiple of 32.
  Mlp(MlpKind kind, std::int64_t width, std::int64_t hidden, bool bias, double output_std,
      Generator& init);

  Variable forward(const Variable& x) const;
  double flops_per_token() const;

 private:
  MlpKind kind_;
  Variable up_weight_;    // [hidden, C]
  Variable up_bias_;      // [hidden] or undefined
  Variable gate_weight_;  // [hidden, C], swiglu only
  Variable down_weight_;  // [C, hidden]
  Variable down_bias_;    // [C] or undefined
};

}  // namespace proteus
