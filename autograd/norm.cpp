#include "autograd/norm.h"

#include "autograd/tape.h"
#include "autograd/view.h"
#include "tensor/ops/norm.h"

namespace proteus {

namespace {
Tensor value_or_none(const Variable& v) { return v.defined() ? v.value() : Tensor(); }
}  // namespace

Variable layernorm(const Variable& x, const Variable& any_gamma, const Variable& any_beta,
                   double eps) {
  const Variable gamma = beside(any_gamma, x);
  const Variable beta = beside(any_beta, x);
  auto fwd = ops::layernorm(x.value(), value_or_none(gamma), value_or_none(beta), eps);
  return record(
      "layernorm", {x, gamma, beta}, fwd.y, {x.value(), value_or_none(gamma), fwd.mean, fwd.rstd},
      [](const Backward& ctx) -> Gradients {
        auto g = ops::norm_backward(ctx.saved(0), ctx.saved(1), {{}, ctx.saved(2), ctx.saved(3)},
                                    ctx.dy(), ctx.needs(2), ctx.sum(0));
        return {g.dx, g.dgamma, g.dbeta};
      });
}

Variable rmsnorm(const Variable& x, const Variable& any_gamma, double eps) {
  const Variable gamma = beside(any_gamma, x);
  auto fwd = ops::rmsnorm(x.value(), value_or_none(gamma), eps);
  return record("rmsnorm", {x, gamma}, fwd.y, {x.value(), value_or_none(gamma), fwd.rstd},
                [](const Backward& ctx) -> Gradients {
                  auto g = ops::norm_backward(ctx.saved(0), ctx.saved(1), {{}, {}, ctx.saved(2)},
                                              ctx.dy(), false, ctx.sum(0));
                  return {g.dx, g.dgamma};
                });
}

}  // namespace proteus
