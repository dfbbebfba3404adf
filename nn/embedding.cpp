#include "nn/embedding.h"

#include "autograd/embedding.h"
#include "nn/init.h"
#include "tensor/ops/embedding.h"

namespace proteus {

Embedding::Embedding(std::int64_t vocab, std::int64_t width, Generator& init)
    : weight_(add_parameter("weight", normal_init({vocab, width}, init))) {}

Variable Embedding::forward(const Tensor& ids) const {
  const Device device = weight_.device();
  if (ids.device() == device) return embedding(weight_, ids);
  ops::check_ids(ids.to(kCpu), weight_.size(0));
  return embedding(weight_, ids.to(device));
}

}  // namespace proteus
