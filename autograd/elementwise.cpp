#include "autograd/elementwise.h"

#include "autograd/tape.h"
#include "autograd/view.h"
#include "tensor/ops/check.h"
#include "tensor/ops/elementwise.h"
#include "tensor/ops/reduce.h"

namespace proteus {
namespace {

Variable unary(UnaryOp op, const char* name, const char* call, const Variable& x, double a = 1,
               double b = 0) {
  Tensor y = ops::unary(op, call, x.value(), a, b);
  std::vector<Saved> saved;
  if (op != UnaryOp::affine) saved.push_back(unary_saves_output(op) ? y : x.value());
  return record(name, {x}, std::move(y), std::move(saved),
                [op, a](const Backward& ctx) -> Gradients {
                  const Tensor none;
                  const Tensor& s = op == UnaryOp::affine ? none : ctx.saved(0);
                  return {ops::unary_backward(op, s, ctx.dy(), a)};
                });
}

Variable rows_by(const char* name, const Variable& x, const Variable& r, const RowFactor& factor) {
  return record(name, {x, r}, ops::scale_rows(x.value(), r.value(), factor), {x.value(), r.value()},
                [factor](const Backward& ctx) -> Gradients {
                  auto g = ops::scale_rows_backward(ctx.saved(0), ctx.saved(1), ctx.dy(),
                                                    ctx.needs(0), ctx.needs(1), factor);
                  return {g.dx, g.dr};
                });
}

}  // namespace

Variable add(const Variable& a, const Variable& b) {
  return record("add", {a, b}, ops::add(a.value(), b.value()), {},
                [sa = a.shape(), sb = b.shape()](const Backward& ctx) -> Gradients {
                  Gradients g(2);
                  if (ctx.needs(0)) g[0] = ops::sum_to(ctx.dy(), sa);
                  if (ctx.needs(1)) g[1] = ops::sum_to(ctx.dy(), sb);
                  return g;
                });
}

Variable sub(const Variable& a, const Variable& b) {
  return record("sub", {a, b}, ops::sub(a.value(), b.value()), {},
                [sa = a.shape(), sb = b.shape()](const Backward& ctx) -> Gradients {
                  Gradients g(2);
                  if (ctx.needs(0)) g[0] = ops::sum_to(ctx.dy(), sa);
                  if (ctx.needs(1)) g[1] = ops::affine(ops::sum_to(ctx.dy(), sb), -1, 0);
                  return g;
                });
}

Variable mul(const Variable& a, const Variable& b) {
  return record("mul", {a, b}, ops::mul(a.value(), b.value()), {a.value(), b.value()},
                [](const Backward& ctx) -> Gradients {
                  const auto gradient = [&](int input) {
                    const Tensor& other = ctx.saved(1 - input);
                    return ops::sum_product_to(ctx.dy(), other, ctx.saved(input).shape());
                  };
                  Gradients g(2);
                  if (ctx.needs(0)) g[0] = gradient(0);
                  if (ctx.needs(1)) g[1] = gradient(1);
                  return g;
                });
}

Variable div(const Variable& a, const Variable& b) {
  return record("div", {a, b}, ops::div(a.value(), b.value()), {a.value(), b.value()},
                [](const Backward& ctx) -> Gradients {
                  // In the accumulation type: in a sum of quotients what is rounded does not
                  // cancel.
                  const DType dtype = ctx.dy().dtype();
                  const DType accum = ops::accum_dtype(dtype);
                  const Tensor x = ctx.saved(0).to(accum);
                  const Tensor z = ctx.saved(1).to(accum);
                  const Tensor dx = ops::div(ctx.dy().to(accum), z);
                  Gradients g(2);
                  if (ctx.needs(0)) g[0] = ops::sum_to(dx, x.shape()).to(dtype);
                  if (ctx.needs(1)) {
                    const Tensor dz = ops::sum_product_to(dx, ops::div(x, z), z.shape());
                    g[1] = ops::affine(dz, -1, 0).to(dtype);
                  }
                  return g;
                });
}

Variable neg(const Variable& x) { return unary(UnaryOp::affine, "neg", "neg(x)", x, -1); }
Variable scale(const Variable& x, double factor) {
  return unary(UnaryOp::affine, "scale", "scale(x, factor)", x, factor);
}
Variable shift(const Variable& x, double constant) {
  return unary(UnaryOp::affine, "shift", "shift(x, constant)", x, 1, constant);
}
Variable exp(const Variable& x) { return unary(UnaryOp::exp, "exp", "exp(x)", x); }
Variable log(const Variable& x) { return unary(UnaryOp::log, "log", "log(x)", x); }
Variable sqrt(const Variable& x) { return unary(UnaryOp::sqrt, "sqrt", "sqrt(x)", x); }
Variable square(const Variable& x) { return unary(UnaryOp::square, "square", "square(x)", x); }
Variable pow(const Variable& x, double exponent) {
  return unary(UnaryOp::power, "pow", "pow(x, exponent)", x, exponent);
}
Variable sigmoid(const Variable& x) { return unary(UnaryOp::sigmoid, "sigmoid", "sigmoid(x)", x); }
Variable log_sigmoid(const Variable& x) { return log_sigmoid(x, 1); }
Variable log_sigmoid(const Variable& x, double factor) {
  return unary(UnaryOp::log_sigmoid, "log_sigmoid", "log_sigmoid(x)", x, factor);
}
Variable tanh(const Variable& x) { return unary(UnaryOp::tanh, "tanh", "tanh(x)", x); }
Variable gelu(const Variable& x) { return unary(UnaryOp::gelu, "gelu", "gelu(x)", x); }
Variable silu(const Variable& x) { return unary(UnaryOp::silu, "silu", "silu(x)", x); }
Variable relu(const Variable& x) { return unary(UnaryOp::relu, "relu", "relu(x)", x); }
Variable softplus(const Variable& x) {
  return unary(UnaryOp::softplus, "softplus", "softplus(x)", x);
}

Variable swiglu(const Variable& gate, const Variable& up) {
  return record("swiglu", {gate, up}, ops::swiglu(gate.value(), up.value()),
                {gate.value(), up.value()}, [](const Backward& ctx) -> Gradients {
                  auto g = ops::swiglu_backward(ctx.saved(0), ctx.saved(1), ctx.dy());
                  return {g.dgate, g.dup};
                });
}

Variable scale_rows(const Variable& x, const Variable& r) {
  return rows_by("scale_rows", x, r, {});
}
Variable open_rows(const Variable& x, const Variable& z, double a, double b) {
  return rows_by("open_rows", x, z, {.gated = true, .a = a, .b = b});
}

Variable key_shift(const Variable& x, const Variable& any_mu) {
  const Variable mu = beside(any_mu, x);
  return record("key_shift", {x, mu}, ops::key_shift(x.value(), mu.value()),
                {x.value(), mu.value()}, [](const Backward& ctx) -> Gradients {
                  auto g = ops::key_shift_backward(ctx.saved(0), ctx.saved(1), ctx.dy(),
                                                   ctx.needs(0), ctx.needs(1), ctx.sum(0));
                  return {g.dx, g.dmu};
                });
}

}  // namespace proteus
