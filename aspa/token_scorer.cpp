#include "aspa/token_scorer.h"

#include <fmt/format.h>

#include <cmath>

#include "aspa/salience.h"
#include "autograd/tape.h"
#include "tensor/error.h"
#include "tensor/ops/check.h"
#include "tensor/ops/elementwise.h"
#include "tensor/ops/gemm.h"
#include "tensor/ops/reduce.h"

namespace proteus {
namespace {

void check_rows(const char* call, const char* name, const Tensor& x, const AspaConfig& config) {
  if (x.rank() != 2 || x.size(1) != config.width) {
    throw ShapeError(fmt::format("{}: {}: expected [n, {}] (= width), got {}", call, name,
                                 config.width, to_string(x.shape())));
  }
  if (x.dtype() != config.dtype) {
    throw_dtype(fmt::format("{}: {}", call, name), x.dtype(), name_of(config.dtype));
  }
}

}  // namespace

TokenScorer::TokenScorer(const AspaAttention& layer, const Tensor& prompt, bool with_salience)
    : layer_(layer), with_salience_(with_salience) {
  const char* call = "TokenScorer(layer, prompt)";
  const AspaConfig& c = layer.config();
  const Device device = layer.router().device();  // throws where there are no routed heads
  check_rows(call, "prompt", prompt, c);
  if (prompt.size(0) < 1) {
    throw ShapeError(fmt::format("{}: prompt: expected at least one token, got {}", call,
                                 to_string(prompt.shape())));
  }
  if (with_salience && !layer.salience()) {
    throw ConfigError(
        "TokenScorer(layer, prompt): the layer has no token salience; make it with token keep "
        "below 1, or score without");
  }
  queries_ = prompt.size(0);
  const Tensor x = prompt.to(device).unsqueeze(0);
  const Tensor q = ops::matmul(x, layer.weights().q.value());  // [H, P, D]
  const Tensor asked = ops::matmul(q, layer.weights().k.value(), false, true);
  const double scale = 1 / std::sqrt(static_cast<double>(c.head_width));
  asked_ = ops::affine(asked, scale, 0).reshape({c.routed_heads * queries_, c.width});
}

std::int64_t TokenScorer::heads() const { return asked_.size(0) / queries_; }

TokenScores TokenScorer::score(const Tensor& x_any, const Tensor& before) const {
  const NoGradGuard no_grad;
  check_rows("TokenScorer::score(x, before)", "x", x_any, layer_.config());
  const std::int64_t n = x_any.size(0);
  Tensor x = x_any.to(asked_.device()).contiguous();
  if (layer_.weights().mu.defined() && n > 0) {
    const Tensor& mu = layer_.weights().mu.value();
    x = ops::key_shift(x.unsqueeze(0), mu).squeeze(0);
    if (before.defined()) {
      x.select(0, 0).add_(ops::mul(mu, before.to(asked_.device())));
    }
  }
  const Tensor logits = ops::linear(x, asked_, {}).reshape({n, heads(), queries_});
  const ops::MaxResult most = ops::max(logits, {2});
  return with_salience_of({most.y.to(DType::f32).to(kCpu), most.index.to(kCpu)}, x);
}

TokenScores TokenScorer::with_salience_of(TokenScores scores, const Tensor& x_key) const {
  if (!with_salience_) return scores;
  const Router& router = layer_.router();
  const Tensor projected = router.project(Variable(x_key.unsqueeze(0))).value();
  const Tensor nearest = router.logits_and_nearest(projected).nearest;
  const Variable s = layer_.salience()->scores(Variable(projected), router.gate_state().p, nearest);
  scores.salience = s.value().to(DType::f32).to(kCpu);
  return scores;
}

double TokenScorer::flops_per_token() const {
  const double logits = 2 * static_cast<double>(asked_.numel());
  return logits + (with_salience_ ? layer_.router().flops_per_token() : 0);
}

}  // namespace proteus
