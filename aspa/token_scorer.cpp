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

// 1 for the heads that a query enters, else 0: [H, P, 1].
Tensor entered(const Tensor& heads, std::int64_t queries, std::int64_t H) {
  check_heads(Role::query, heads, queries, H);
  const Tensor there = heads.to(kCpu).contiguous();
  const Tensor mask = Tensor::zeros({H, queries, 1});
  for (std::int64_t i = 0; i < there.numel(); ++i) {
    const std::int32_t head = there.data<std::int32_t>()[i];
    if (head >= 0) mask.data<float>()[head * queries + i / there.size(1)] = 1;
  }
  return mask;
}

}  // namespace

TokenScorer::TokenScorer(const AspaAttention& layer, const Tensor& prompt, bool with_salience,
                         const Tensor& heads)
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
  const std::int64_t H = c.routed_heads;
  const std::int64_t P = prompt.size(0);
  const double scale = 1 / std::sqrt(static_cast<double>(c.head_width));
  Tensor q = ops::matmul(prompt.to(device).unsqueeze(0), layer.weights().q.value());
  const Variable& q_bias = layer.weights().q_bias;
  if (q_bias.defined()) q = ops::add(q, q_bias.value().unsqueeze(1));
  Tensor queries = ops::affine(q, scale, 0);
  if (heads.defined()) {
    queries = ops::mul(queries, entered(heads, P, H).to(queries.dtype()).to(device));
  }
  const Tensor& w_k = layer.weights().k.value();
  const Variable& k_bias = layer.weights().k_bias;
  if (P * c.width <= c.head_width * (c.width + P)) {
    asked_ = ops::matmul(queries, w_k, false, true).reshape({H * P, c.width});
    if (k_bias.defined()) {
      bias_ = ops::matmul(queries, k_bias.value().unsqueeze(2)).reshape({H * P});
    }
  } else {
    queries_ = queries;
    keys_ = w_k.transpose(1, 2).contiguous().reshape({H * c.head_width, c.width});
    if (k_bias.defined()) bias_ = k_bias.value().reshape({H * c.head_width});
  }
}

std::int64_t TokenScorer::heads() const { return layer_.config().routed_heads; }

// [n, H, P] or, with keys, a view of [H, n, P].
Tensor TokenScorer::logits_of(const Tensor& x_key) const {
  const std::int64_t n = x_key.size(0);
  const std::int64_t H = heads();
  if (asked_.defined()) return ops::linear(x_key, asked_, bias_).reshape({n, H, -1});
  const Tensor k = ops::linear(x_key, keys_, bias_).reshape({n, H, queries_.size(2)});
  return ops::matmul(k.transpose(0, 1), queries_, false, true).transpose(0, 1);
}

TokenScores TokenScorer::score(const Tensor& x_any, const Tensor& before) const {
  const NoGradGuard no_grad;
  check_rows("TokenScorer::score(x, before)", "x", x_any, layer_.config());
  const std::int64_t n = x_any.size(0);
  const Device device = layer_.router().device();
  Tensor x = x_any.to(device).contiguous();
  if (layer_.weights().mu.defined() && n > 0) {
    const Tensor& mu = layer_.weights().mu.value();
    x = ops::key_shift(x.unsqueeze(0), mu).squeeze(0);
    if (before.defined()) x.select(0, 0).add_(ops::mul(mu, before.to(device)));
  }
  const ops::MaxResult most = ops::max(logits_of(x), {2});
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
  const Tensor& products = asked_.defined() ? asked_ : queries_;
  const auto logits = static_cast<double>(products.numel());
  const double keys = keys_.defined() ? static_cast<double>(keys_.numel()) : 0;
  return 2 * (logits + keys) + (with_salience_ ? layer_.router().flops_per_token() : 0);
}

}  // namespace proteus
