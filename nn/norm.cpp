#include "nn/norm.h"

#include "autograd/norm.h"

namespace proteus {

Norm::Norm(NormKind kind, std::int64_t width, bool bias)
    : kind_(kind), weight_(add_parameter("weight", Tensor::full({width}, 1.0), Decay::no)) {
  if (bias && kind == NormKind::layer) {
    bias_ = add_parameter("bias", Tensor::zeros({width}), Decay::no);
  }
}

Variable Norm::forward(const Variable& x) const {
  return kind_ == NormKind::layer ? layernorm(x, weight_, bias_) : rmsnorm(x, weight_);
}

}  // namespace proteus
