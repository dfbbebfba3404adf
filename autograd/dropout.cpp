#include "autograd/dropout.h"

#include "autograd/checkpoint.h"
#include "autograd/tape.h"
#include "tensor/ops/dropout.h"

namespace proteus {

Variable dropout(const Variable& x, double p, RngKey key) {
  if (p == 0) return x;
  return record(
      "dropout", {x}, ops::dropout(x.value(), p, key), {},
      [p, key](const Backward& ctx) -> Gradients { return {ops::dropout(ctx.dy(), p, key)}; });
}

Variable dropout_add(const Variable& x, const Variable& residual, double p, RngKey key) {
  return record("dropout_add", {x, residual}, ops::dropout_add(x.value(), residual.value(), p, key),
                {}, [p, key](const Backward& ctx) -> Gradients {
                  Gradients g(2);
                  if (ctx.needs(0)) g[0] = ops::dropout(ctx.dy(), p, key);
                  g[1] = ctx.dy();
                  return g;
                });
}

Variable dropout(const Variable& x, double p, Generator& generator) {
  return dropout(x, p, p == 0 ? RngKey{} : next_key(generator));
}

Variable dropout_add(const Variable& x, const Variable& residual, double p, Generator& generator) {
  return dropout_add(x, residual, p, p == 0 ? RngKey{} : next_key(generator));
}

}  // namespace proteus
