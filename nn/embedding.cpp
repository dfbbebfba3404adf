#include "nn/embedding.h"

#include "autograd/embedding.h"
#include "nn/init.h"

namespace proteus {

Embedding::Embedding(std::int64_t vocab, std::int64_t width, Generator& init)
    : weight_(add_parameter("weight", normal_init({vocab, width}, init))) {}

Variable Embedding::forward(const Tensor& ids) const { return embedding(weight_, ids); }

}  // namespace proteus
