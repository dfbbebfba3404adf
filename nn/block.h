// One pre-norm transformer block: x ← x + dropout(attn(norm(x))); x ← x + dropout(mlp(norm(x))).
#pragma once

#include <memory>

#include "nn/attention.h"
#include "nn/mlp.h"
#include "nn/norm.h"

namespace proteus {

class Block : public Module {
 public:
  Block(std::unique_ptr<Attention> attention, NormKind norm, std::unique_ptr<FeedForward> mlp,
        std::int64_t width, bool bias, double dropout, Generator& generator);

  /// x [B, T, C] → [B, T, C].
  Variable forward(const Variable& x) const;
  /// The same for one more token of every sequence, x [B, C]; see Attention::step.
  Tensor step(const Tensor& x, std::span<AttentionState* const> states) const;
  Tensor step(const Tensor& x, const LayerCaches& caches, const Tensor& positions) const;
  /// What the attention layer gets of x: norm(x).
  Variable attention_input(const Variable& x) const { return norm1_.forward(x); }
  Attention& attention() const { return attention_; }
  FeedForward& mlp() const { return mlp_; }

 private:
  /// The rest of a step, from what the attention layer has made of x.
  Tensor finish_step(const Tensor& mixed, const Tensor& x) const;

  Norm& norm1_;
  Attention& attention_;
  Norm& norm2_;
  FeedForward& mlp_;
  double dropout_;
  Generator& generator_;
};

}  // namespace proteus
