#include "autograd/softsign.h"

#include "autograd/tape.h"
#include "tensor/ops/softsign.h"

namespace proteus {

Variable softsign(const Variable& x) {
  return record("softsign", {x}, ops::softsign(x.value()), {x.value()},
                [](const Backward& ctx) -> Gradients {
                  return {ops::softsign_backward(ctx.saved(0), ctx.dy())};
                });
}

}  // namespace proteus
