#include "autograd/gemm.h"

#include <algorithm>

#include "autograd/beside.h"
#include "autograd/tape.h"
#include "tensor/ops/gemm.h"
#include "tensor/ops/wide_linear.h"

namespace proteus {
namespace {

Tensor value_or_none(const Variable& v) { return v.defined() ? v.value() : Tensor(); }

Tensor transposed(const Tensor& t, bool yes) { return yes ? t.transpose(-1, -2) : t; }

// The gradient of one factor, [..., rows, columns] like `like`, summed over the batch dimensions in
// which it was broadcast; `like` was used transposed if `trans`.
Tensor factor_gradient(const Tensor& like, bool trans, const Tensor& left, const Tensor& right) {
  const int rank = std::max(left.rank(), right.rank());
  Tensor grad = Tensor::empty(like.shape(), like.dtype(), like.device());
  Tensor target = transposed(grad, trans);
  while (target.rank() < rank) target = target.unsqueeze(0);
  ops::gemm_into(target, left, right);
  return grad;
}

}  // namespace

Variable linear(const Variable& x, const Variable& weight, const Variable& bias,
                const Variable& residual) {
  const Tensor w = value_beside(weight, x);
  Tensor y = ops::linear(x.value(), w, value_beside(bias, x), value_or_none(residual));
  return record("linear", {x, weight, bias, residual}, y, {x, w},
                [dtype = weight.dtype()](const Backward& ctx) -> Gradients {
                  const Tensor& dy = ctx.dy();
                  Gradients g(4);
                  g[3] = dy;
                  if (const Tensor* sum = ctx.sum(0)) {
                    ops::linear_dx_add(*sum, dy, ctx.saved(1));
                  } else if (ctx.needs(0)) {
                    g[0] = ops::linear_dx(dy, ctx.saved(1));
                  }
                  if (ctx.needs(1)) g[1] = ops::linear_dweight(dy, ctx.saved(0), dtype);
                  if (ctx.needs(2)) g[2] = ops::bias_backward(dy, {}, true).dbias.to(dtype);
                  return g;
                });
}

Variable wide_linear(const Variable& x, const Variable& weight) {
  return record("wide_linear", {x, weight}, ops::wide_linear(x.value(), weight.value()),
                {x, weight.value()}, [](const Backward& ctx) -> Gradients {
                  const auto g = ops::wide_linear_backward(ctx.saved(0), ctx.saved(1), ctx.dy(),
                                                           ctx.needs(0), ctx.needs(1), ctx.sum(0));
                  return {g.dx, g.dweight};
                });
}

Variable linear_gelu(const Variable& x, const Variable& weight, const Variable& bias) {
  const Tensor w = value_beside(weight, x);
  auto fwd = ops::linear_gelu(x.value(), w, value_beside(bias, x), will_record({x, weight, bias}));
  return record("linear_gelu", {x, weight, bias}, fwd.y, {x.value(), w, fwd.pre},
                [dtype = weight.dtype()](const Backward& ctx) -> Gradients {
                  const auto d = ops::bias_backward(ctx.dy(), ctx.saved(2), ctx.needs(2));
                  Gradients g(3);
                  if (ctx.needs(0)) g[0] = ops::linear_dx(d.dpre, ctx.saved(1));
                  if (ctx.needs(1)) g[1] = ops::linear_dweight(d.dpre, ctx.saved(0), dtype);
                  if (d.dbias.defined()) g[2] = d.dbias.to(dtype);
                  return g;
                });
}

Variable mlp_gelu(const Variable& x, const Variable& weight1, const Variable& bias1,
                  const Variable& weight2, const Variable& bias2, const Variable& residual) {
  const Tensor w1 = value_beside(weight1, x);
  const Tensor w2 = value_beside(weight2, x);
  auto hidden = ops::linear_gelu(x.value(), w1, value_beside(bias1, x),
                                 will_record({x, weight1, bias1, weight2, bias2}));
  Tensor y = ops::linear(hidden.y, w2, value_beside(bias2, x), value_or_none(residual));
  // In bf16 both are kept: the activation is half as large there, and of a pre-activation that was
  // rounded it would be another value when computed again.
  const bool keep = x.dtype() == DType::bf16;
  return record("mlp_gelu", {x, weight1, bias1, weight2, bias2, residual}, y,
                {x.value(), w1, w2, hidden.pre, keep ? hidden.y : Tensor()},
                [dtype = weight1.dtype(), keep](const Backward& ctx) -> Gradients {
                  const Tensor& dy = ctx.dy();
                  Gradients g(6);
                  g[5] = dy;
                  auto d = ops::linear_dx_gelu(dy, ctx.saved(2), ctx.saved(3), !keep);
                  if (keep) d.act = ctx.saved(4);
                  if (ctx.needs(3)) g[3] = ops::linear_dweight(dy, d.act, dtype);
                  d.act = {};
                  if (ctx.needs(4)) g[4] = ops::bias_backward(dy, {}, true).dbias.to(dtype);
                  if (ctx.needs(0)) g[0] = ops::linear_dx(d.dpre, ctx.saved(1));
                  if (ctx.needs(1)) g[1] = ops::linear_dweight(d.dpre, ctx.saved(0), dtype);
                  if (ctx.needs(2)) g[2] = ops::bias_backward(d.dpre, {}, true).dbias.to(dtype);
                  return g;
                });
}

Variable matmul(const Variable& a, const Variable& b, bool trans_a, bool trans_b) {
  const Tensor& av = a.value();
  const Tensor& bv = b.value();
  Tensor y = ops::matmul(av, bv, trans_a, trans_b);
  return record(
      "matmul", {a, b}, y, {av, bv}, [trans_a, trans_b](const Backward& ctx) -> Gradients {
        // Contiguous, so that the bits do not depend on the strides of what was given.
        const Tensor dy = ctx.dy().contiguous();
        const Tensor left = transposed(ctx.saved(0).contiguous(), trans_a);
        const Tensor right = transposed(ctx.saved(1).contiguous(), trans_b);
        Gradients g(2);
        if (ctx.needs(0)) {
          g[0] = factor_gradient(ctx.saved(0), trans_a, dy, right.transpose(-1, -2));
        }
        if (!ctx.needs(1)) return g;
        if (left.rank() > 2 && right.rank() == 2 && !trans_a) {  // one product over all rows
          g[1] = transposed(ops::linear_dweight(left, dy), trans_b);
        } else {
          g[1] = factor_gradient(ctx.saved(1), trans_b, left.transpose(-1, -2), dy);
        }
        return g;
      });
}

}  // namespace proteus
