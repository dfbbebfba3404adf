#include "nn/linear.h"

#include "autograd/gemm.h"
#include "nn/init.h"

namespace proteus {

Linear::Linear(std::int64_t in, std::int64_t out, bool bias, double std, Generator& init) {
  weight_ = add_parameter("weight", normal_init({out, in}, init, std));
  if (bias) bias_ = add_parameter("bias", Tensor::zeros({out}), Decay::no);
}

Variable Linear::forward(const Variable& x) const { return linear(x, weight_, bias_); }

}  // namespace proteus
