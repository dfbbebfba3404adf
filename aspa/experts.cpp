#include "aspa/experts.h"

#include <fmt/format.h>

#include "autograd/checkpoint.h"
#include "autograd/elementwise.h"
#include "autograd/grouped_gemm.h"
#include "autograd/tape.h"
#include "autograd/view.h"
#include "nn/init.h"
#include "tensor/error.h"

namespace proteus {

GatedMlp::GatedMlp(const GatedMlpConfig& config, double output_std, Generator& init,
                   Gating* attention)
    : config_(config) {
  config.validate();
  if (attention && attention->config().routed_heads != config.routed_heads) {
    throw ConfigError(fmt::format(
        "gated mlp: routed_heads: expected {} (= the attention's, whose gates it shares), got {}",
        attention->config().routed_heads, config.routed_heads));
  }
  const std::int64_t E = config.routed_heads;
  const std::int64_t F = config.expert_width;
  if (config.shared_width > 0) {
    shared_ =
        &add_child("shared", std::make_unique<Mlp>(config.kind, config.width, config.shared_width,
                                                   false, output_std, init, config.dtype));
  }
  const auto experts = [&](const char* name, const Shape& shape, double std) {
    return add_parameter(name, normal_init(shape, init, std, config.dtype));
  };
  weights_.up = experts("experts.up", {E, config.width, F}, kInitStd);
  if (config.kind == MlpKind::swiglu) {
    weights_.gate = experts("experts.gate", {E, config.width, F}, kInitStd);
  }
  weights_.down = experts("experts.down", {E, F, config.width}, output_std);
  if (attention) {
    gating_ = std::make_unique<Gating>(config_, *attention);
  } else {
    Router& router = add_child("router", std::make_unique<Router>(config, init, 1));
    gating_ = std::make_unique<Gating>(config_, router, nullptr);
  }
  const std::string path = attention ? "../mlp." : "";
  gating_->add_table({path + "experts.up", weights_.up, kInitStd});
  if (weights_.gate.defined()) {
    gating_->add_table({path + "experts.gate", weights_.gate, kInitStd});
  }
  gating_->add_table({path + "experts.down", weights_.down});
}

void GatedMlp::set_alpha(double alpha) {
  GatedMlpConfig changed = config_;
  changed.alpha = alpha;
  changed.validate();
  config_ = changed;
  gating_->refresh();
}

RoleRouting GatedMlp::route(const Variable& x) {
  const Variable projected = gating_->gated() ? gating_->router().project(x) : Variable();
  return gating_->route(Role::query, projected, x.size(0), x.size(1));
}

Tensor GatedMlp::select(const Variable& x) {
  const NoGradGuard no_grad;
  return route(x).heads;
}

Variable GatedMlp::forward(const Variable& x) {
  const std::int64_t rank = x.value().rank();
  if ((rank != 2 && rank != 3) || x.shape()[-1] != config_.width) {
    throw ShapeError(
        fmt::format("gated mlp(x): x: expected [B, T, {}] or [B, {}] (= width), got {}",
                    config_.width, config_.width, to_string(x.shape())));
  }
  // One token of every sequence is a batch of sequences of length 1.
  const Variable in = rank == 3 ? x : reshape(x, {x.size(0), 1, config_.width});
  const RoleRouting routing = route(in);
  const PackedRows rows =
      ops::pack_rows(routing.heads, config_.routed_heads, in.size(0), routing.slots);
  const Variable tokens = reshape(x, {in.size(0) * in.size(1), config_.width});
  const Variable up = grouped_linear(tokens, weights_.up, rows);
  Variable hidden = config_.kind == MlpKind::gelu
                        ? gelu(up)
                        : swiglu(grouped_linear(tokens, weights_.gate, rows), up);
  if (gating_->gated()) {
    const RowLogitsVar logits = gating_->router().row_logits(routing.projected, rows);
    hidden = gating_->open(hidden, logits.z, routing, rows);
    if (training() && !recomputing()) {
      gating_->collect(Role::query, routing, rows, logits.share);
    }
  }
  const Variable base = shared_ ? reshape(shared_->forward(x), tokens.shape()) : Variable();
  return reshape(grouped_combine(hidden, weights_.down, rows, base), x.shape());
}

void GatedMlp::after_step(double rate) { gating_->after_step(rate); }

std::int64_t GatedMlp::expert_parameters() const {
  const std::int64_t matrices = config_.kind == MlpKind::gelu ? 2 : 3;
  return matrices * config_.width * config_.expert_width;
}

double GatedMlp::flops_per_token() const {
  double flops = shared_ ? shared_->flops_per_token() : 0;
  flops += 2 * static_cast<double>(gating_->k() * expert_parameters());
  return gating_->gated() ? flops + gating_->router().flops_per_token() : flops;
}

std::int64_t GatedMlp::active_parameter_count() const {
  return parameter_count() - (config_.routed_heads - gating_->k()) * expert_parameters();
}

}  // namespace proteus
