#include "autograd/salience.h"

#include "autograd/tape.h"

namespace proteus {

Variable salience(const Variable& x, const Variable& v, const Tensor& p, const Variable& kappa,
                  const Tensor& gate) {
  const Tensor scale = kappa.defined() ? kappa.value() : Tensor();
  return record("salience", {x, v, kappa}, ops::salience(x.value(), v.value(), p, scale, gate),
                {x.value(), v.value(), p, scale, gate}, [](const Backward& ctx) -> Gradients {
                  auto g = ops::salience_backward(ctx.saved(0), ctx.saved(1), ctx.saved(2),
                                                  ctx.saved(3), ctx.saved(4), ctx.dy());
                  return {g.dx, g.dv, g.dkappa};
                });
}

}  // namespace proteus
