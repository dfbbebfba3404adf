#include "nn/attention.h"

#include <algorithm>

#include "autograd/attention.h"
#include "autograd/checkpoint.h"
#include "autograd/elementwise.h"
#include "autograd/gemm.h"
#include "autograd/rope.h"
#include "autograd/view.h"
#include "nn/init.h"
#include "tensor/error.h"

namespace proteus {

namespace {
void check(const DenseAttentionConfig& c) {
  if (c.width < 1 || c.heads < 1 || c.head_width < 1 || c.window < 0) {
    throw ConfigError("dense attention: width, heads and head width must be at least 1, got " +
                      std::to_string(c.width) + ", " + std::to_string(c.heads) + ", " +
                      std::to_string(c.head_width));
  }
}
constexpr double kKeyShiftInit = 0.5;
}  // namespace

DenseAttention::DenseAttention(const DenseAttentionConfig& config, double output_std,
                               Generator& init, Generator& generator)
    : config_(config), generator_(generator) {
  check(config);
  const std::int64_t C = config.width;
  const std::int64_t HD = config.heads * config.head_width;
  const DType dtype = config.dtype;
  qkv_weight_ = add_parameter("qkv.weight", normal_init({3 * HD, C}, init, kInitStd, dtype));
  if (config.bias) {
    qkv_bias_ = add_parameter("qkv.bias", Tensor::zeros({3 * HD}, dtype), Decay::no);
  }
  out_weight_ = add_parameter("out.weight", normal_init({C, HD}, init, output_std, dtype));
  if (config.bias) out_bias_ = add_parameter("out.bias", Tensor::zeros({C}, dtype), Decay::no);
  if (config.output_gate) {
    gate_weight_ = add_parameter("gate.weight",
                                 normal_init({config.heads, C}, init, kInitStd, dtype), Decay::no);
  }
  if (config.key_shift) {
    mu_ = add_parameter("mu", Tensor::full({C}, kKeyShiftInit, dtype), Decay::no);
  }
}

Variable Attention::forward_onto(const Variable& x, const Variable& residual) {
  return add(forward(x), residual);
}

Variable DenseAttention::forward_onto(const Variable& x, const Variable& residual) {
  const std::int64_t B = x.size(0);
  const std::int64_t T = x.size(1);
  const std::int64_t H = config_.heads;
  const std::int64_t D = config_.head_width;
  Variable qkv;
  if (!mu_.defined()) {
    qkv = linear(x, qkv_weight_, qkv_bias_);
  } else {
    // W_K x^K = W_K x + W_K (mu ⊙ x_{t−1}): only the key third reads the shifted input.
    const auto part = [&](int i) {
      const Variable weight = slice(qkv_weight_, 0, i * H * D, (i + 1) * H * D);
      const Variable bias =
          qkv_bias_.defined() ? slice(qkv_bias_, 0, i * H * D, (i + 1) * H * D) : Variable();
      return linear(i == 1 ? key_shift(x, mu_) : x, weight, bias);
    };
    qkv = concat({part(0), part(1), part(2)}, -1);
  }
  qkv = reshape(qkv, {B, T, 3, H, D});
  if (config_.rope) qkv = rope_qkv_(qkv, D);
  AttentionOptions options;
  if (training() && config_.dropout > 0) {
    options.dropout = config_.dropout;
    options.key = next_key(generator_);
  }
  const AttentionPlan& plan =
      plan_.of({.B = B, .H = H, .T = T, .window = config_.window, .device = x.device()},
               [&] { return ops::causal_plan(B, H, T, T, config_.window, 0, x.device()); });
  Variable y = attention_qkv(qkv, plan, options);  // [B, T, H, D]
  if (gate_weight_.defined()) {
    const Variable gate = scale(sigmoid(linear(x, gate_weight_, {})), 2.0);
    y = mul(y, reshape(gate, {B, T, H, 1}));
  }
  return linear(reshape(y, {B, T, H * D}), out_weight_, out_bias_, residual);
}

double DenseAttention::attention_flops_per_token(std::int64_t T) const {
  const double t = static_cast<double>(T);
  const double w = config_.window > 0 ? static_cast<double>(std::min(config_.window, T)) : t;
  const double pairs = (w * (w + 1) / 2 + (t - w) * w) / t;  // mean number of visible keys
  return 4.0 * static_cast<double>(config_.heads * config_.head_width) * pairs;
}

double DenseAttention::total_flops_per_token(std::int64_t T) const {
  double weights = static_cast<double>(qkv_weight_.value().numel() + out_weight_.value().numel());
  if (gate_weight_.defined()) weights += static_cast<double>(gate_weight_.value().numel());
  return 2 * weights + attention_flops_per_token(T);
}

}  // namespace proteus
