#include "autograd/grouped_gemm.h"

#include <utility>

#include "autograd/tape.h"
#include "autograd/view.h"
#include "tensor/ops/grouped_gemm.h"

namespace proteus {

// The rows are integers, made once per routing and never changed: lambdas may hold them.

Variable grouped_linear(const Variable& x, const Variable& any_weight, const PackedRows& rows) {
  const Variable weight = beside(any_weight, x);
  return record("grouped_linear", {x, weight}, ops::grouped_gather(x.value(), weight.value(), rows),
                {x, weight.value()}, [rows](const Backward& ctx) -> Gradients {
                  Gradients g(2);
                  if (ctx.needs(1)) {
                    g[1] = ops::grouped_weight(ctx.saved(0), true, ctx.dy(), false, rows);
                  }
                  ctx.release(0);
                  if (const Tensor* sum = ctx.sum(0)) {
                    ops::grouped_scatter_add(*sum, ctx.dy(), ctx.saved(1), rows, true);
                  } else if (ctx.needs(0)) {
                    g[0] = ops::grouped_scatter(ctx.dy(), ctx.saved(1), rows, true);
                  }
                  return g;
                });
}

namespace {

// `out` is the result already.
Variable record_combine(const Variable& y, const Variable& weight, const PackedRows& rows,
                        const Variable& base, Tensor out) {
  return record("grouped_combine", {y, weight, base}, std::move(out), {y.value(), weight.value()},
                [rows](const Backward& ctx) -> Gradients {
                  Gradients g(3);
                  if (ctx.needs(2)) g[2] = ctx.dy();
                  if (ctx.needs(1)) {
                    g[1] = ops::grouped_weight(ctx.saved(0), false, ctx.dy(), true, rows);
                  }
                  ctx.release(0);
                  if (ctx.needs(0)) g[0] = ops::grouped_gather(ctx.dy(), ctx.saved(1), rows, true);
                  return g;
                });
}

}  // namespace

Variable grouped_combine(const Variable& y, const Variable& any_weight, const PackedRows& rows,
                         const Variable& base) {
  const Variable weight = beside(any_weight, y);
  const Tensor before = base.defined() ? base.value() : Tensor();
  return record_combine(y, weight, rows, base,
                        ops::grouped_scatter(y.value(), weight.value(), rows, false, before));
}

// Nobody's gradient depends on the base itself: whoever has saved it still has it, and then it
// stays as it is.
Variable grouped_combine(const Variable& y, const Variable& any_weight, const PackedRows& rows,
                         Variable&& base) {
  const bool in_place =
      base.defined() && base.value().storage().use_count() == 1 && base.value().is_contiguous();
  if (!in_place) return grouped_combine(y, any_weight, rows, static_cast<const Variable&>(base));
  const Variable weight = beside(any_weight, y);
  ops::grouped_scatter_add(base.value(), y.value(), weight.value(), rows);
  return record_combine(y, weight, rows, base, base.value());
}

}  // namespace proteus
