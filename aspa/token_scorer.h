// How much a prompt asks for each token of a text, by one ASPA layer's own weights:
//   q_{i,h}·k_{t,h}/√D   with q_{i,h} = x_i·W_Q^h of the prompt and k_{t,h} = x^K_t·W_K^h of the
//   text
// before rotation, since a token that is kept gets another position in the final pass. A short
// prompt is scored without making keys: q·(x^K·W_K) = (q·W_Kᵀ)·x^K puts W_K into the queries once,
// and a token costs H·P products of width C; a longer one costs the keys and H·P products of width
// D.
#pragma once

#include "aspa/attention.h"
#include "aspa/shortlist.h"
#include "tensor/tensor.h"

namespace proteus {

class TokenScorer {
 public:
  /// `prompt` [P, C], P ≥ 1: inputs of the layer (what forward() gets). With `with_salience`,
  /// score() gives S_t too. With `heads` i32 [P, k] (Selection::query of the prompt) a query asks
  /// in those heads alone: in others its logit is 0. The layer must outlive the scorer and keep its
  /// weights. Throws ShapeError, DTypeError; ConfigError if the layer has no routed heads or, where
  /// it is asked for, no token salience.
  TokenScorer(const AspaAttention& layer, const Tensor& prompt, bool with_salience,
              const Tensor& heads = {});

  /// x [n, C]: inputs of the layer for consecutive tokens, on any device; `before` [C] is the token
  /// before them, undefined at the start of the text. Runs where the layer is; the result is on
  /// the CPU. A token's scores depend on itself and the token before it alone. A NaN in x comes out
  /// as one.
  TokenScores score(const Tensor& x, const Tensor& before) const;

  std::int64_t heads() const;
  /// Of one token, with its salience.
  double flops_per_token() const;

 private:
  Tensor logits_of(const Tensor& x_key) const;
  TokenScores with_salience_of(TokenScores scores, const Tensor& x_key) const;

  const AspaAttention& layer_;
  bool with_salience_;
  Tensor asked_;    // without keys: q·W_Kᵀ/√D, [H·P, C]
  Tensor queries_;  // with them: q/√D, [H, P, D],
  Tensor keys_;     // and W_Kᵀ [H·D, C]
  Tensor bias_;     // what the keys' biases add to either product; undefined without biases
};

}  // namespace proteus
