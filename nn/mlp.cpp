#include "nn/mlp.h"

#include "autograd/elementwise.h"
#include "autograd/gemm.h"
#include "nn/init.h"

namespace proteus {

std::int64_t usual_mlp_width(MlpKind kind, std::int64_t width) {
  return kind == MlpKind::gelu ? 4 * width : (8 * width / 3 + 31) / 32 * 32;
}

Mlp::Mlp(MlpKind kind, std::int64_t width, std::int64_t hidden, bool bias, double output_std,
         Generator& init, DType dtype)
    : kind_(kind) {
  if (hidden == 0) hidden = usual_mlp_width(kind, width);
  const auto matrix = [&](const Shape& shape, double std) {
    return normal_init(shape, init, std, dtype);
  };
  up_weight_ = add_parameter("up.weight", matrix({hidden, width}, kInitStd));
  if (bias) up_bias_ = add_parameter("up.bias", Tensor::zeros({hidden}, dtype), Decay::no);
  if (kind == MlpKind::swiglu) {
    gate_weight_ = add_parameter("gate.weight", matrix({hidden, width}, kInitStd));
  }
  down_weight_ = add_parameter("down.weight", matrix({width, hidden}, output_std));
  if (bias) down_bias_ = add_parameter("down.bias", Tensor::zeros({width}, dtype), Decay::no);
}

Variable FeedForward::forward_onto(const Variable& x, const Variable& residual) {
  return add(forward(x), residual);
}

Variable Mlp::forward_onto(const Variable& x, const Variable& residual) {
  if (kind_ == MlpKind::gelu) {
    return mlp_gelu(x, up_weight_, up_bias_, down_weight_, down_bias_, residual);
  }
  const Variable up = linear(x, up_weight_, up_bias_);
  const Variable gate = linear(x, gate_weight_, {});
  return linear(swiglu(gate, up), down_weight_, down_bias_, residual);
}

double Mlp::flops_per_token() const {
  double weights = static_cast<double>(up_weight_.value().numel() + down_weight_.value().numel());
  if (gate_weight_.defined()) weights += static_cast<double>(gate_weight_.value().numel());
  return 2 * weights;
}

}  // namespace proteus
