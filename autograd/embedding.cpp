#include "autograd/embedding.h"

#include "autograd/tape.h"
#include "tensor/ops/embedding.h"

namespace proteus {

Variable embedding(const Variable& weight, const Tensor& ids) {
  return record("embedding", {weight}, ops::embedding(weight.value(), ids), {ids},
                [V = weight.size(0)](const Backward& ctx) -> Gradients {
                  return {ops::embedding_backward(ctx.saved(0), ctx.dy(), V)};
                });
}

}  // namespace proteus
