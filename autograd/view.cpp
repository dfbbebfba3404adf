#include "autograd/view.h"

#include "autograd/tape.h"
#include "tensor/ops/check.h"
#include "tensor/ops/reduce.h"

namespace proteus {

Variable slice(const Variable& x, int dim, std::int64_t begin, std::int64_t end) {
  return record("slice", {x}, x.value().slice(dim, begin, end), {},
                [shape = x.shape(), dim, begin, end](const Backward& ctx) -> Gradients {
                  const Tensor& dy = ctx.dy();
                  Tensor dx = Tensor::zeros(shape, dy.dtype(), dy.device());
                  dx.slice(dim, begin, end).copy_(dy);
                  return {dx};
                });
}

std::vector<Variable> split(const Variable& x, int dim, int parts) {
  const int at = checked_dim("split(x, dim, parts)", dim, x.value().rank());
  if (parts < 1 || x.size(at) % parts != 0) {
    throw ShapeError("split(x, dim, parts): parts: expected a divisor of " +
                     std::to_string(x.size(at)) + " (= x.shape[" + std::to_string(at) + "]), got " +
                     std::to_string(parts));
  }
  const std::int64_t size = x.size(at) / parts;
  std::vector<Tensor> views;
  for (int i = 0; i < parts; ++i) views.push_back(x.value().slice(at, i * size, (i + 1) * size));
  return record("split", {x}, std::move(views), {},
                [shape = x.shape(), at, size, parts](const Backward& ctx) -> Gradients {
                  const Tensor& first = ctx.dy();
                  const Tensor dx = Tensor::empty(shape, first.dtype(), first.device());
                  for (int i = 0; i < parts; ++i) {
                    dx.slice(at, i * size, (i + 1) * size).copy_(ctx.dy(i));
                  }
                  return {dx};
                });
}

Variable concat(const std::vector<Variable>& parts, int dim) {
  const std::string call = "concat(parts, dim)";
  if (parts.empty()) throw ShapeError(call + ": parts: expected at least one, got none");
  const Tensor& first = parts[0].value();
  const int at = checked_dim(call, dim, first.rank());
  Shape shape = first.shape();
  shape[at] = 0;
  std::vector<std::int64_t> borders{0};
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const Tensor& part = parts[i].value();
    const std::string name = "parts[" + std::to_string(i) + "]";
    ops::check_like(call, name.c_str(), part, first);
    Shape expected = first.shape();
    if (part.rank() == first.rank()) expected[at] = part.size(at);
    ops::check_shape(call, name.c_str(), part, expected,
                     "(= parts[0].shape but for dimension " + std::to_string(at) + ")");
    shape[at] += part.size(at);
    borders.push_back(shape[at]);
  }
  Tensor y = Tensor::empty(shape, first.dtype(), first.device());
  for (std::size_t i = 0; i < parts.size(); ++i) {
    y.slice(at, borders[i], borders[i + 1]).copy_(parts[i].value());
  }
  return record("concat", parts, y, {}, [at, borders](const Backward& ctx) -> Gradients {
    Gradients g;
    for (std::size_t i = 0; i + 1 < borders.size(); ++i) {
      g.push_back(ctx.dy().slice(at, borders[i], borders[i + 1]));
    }
    return g;
  });
}

Variable reshape(const Variable& x, const Shape& shape) {
  return record(
      "reshape", {x}, x.value().reshape(shape), {},
      [from = x.shape()](const Backward& ctx) -> Gradients { return {ctx.dy().reshape(from)}; });
}

Variable transpose(const Variable& x, int a, int b) {
  return record("transpose", {x}, x.value().transpose(a, b), {},
                [a, b](const Backward& ctx) -> Gradients { return {ctx.dy().transpose(a, b)}; });
}

Variable permute(const Variable& x, const std::vector<int>& order) {
  Tensor y = x.value().permute(order);
  std::vector<int> back(order.size());
  for (std::size_t i = 0; i < order.size(); ++i) {
    const int from = checked_dim("permute", order[i], static_cast<int>(order.size()));
    back[static_cast<std::size_t>(from)] = static_cast<int>(i);
  }
  return record("permute", {x}, std::move(y), {},
                [back](const Backward& ctx) -> Gradients { return {ctx.dy().permute(back)}; });
}

Variable expand(const Variable& x, const Shape& shape) {
  return record("expand", {x}, x.value().expand(shape), {},
                [from = x.shape()](const Backward& ctx) -> Gradients {
                  return {ops::sum_to(ctx.dy(), from)};
                });
}

Variable clone(const Variable& x) {
  return record("clone", {x}, x.value().clone(), {},
                [](const Backward& ctx) -> Gradients { return {ctx.dy()}; });
}

Variable cast(const Variable& x, DType dtype) {
  ops::check_floating("cast(x, dtype)", "x", x.value());
  if (!is_floating(dtype)) throw_dtype("cast(x, dtype): dtype", dtype, "f64, f32 or bf16");
  if (dtype == x.dtype()) return x;
  return record(
      "cast", {x}, x.value().to(dtype), {},
      [from = x.dtype()](const Backward& ctx) -> Gradients { return {ctx.dy().to(from)}; });
}

Variable beside(const Variable& parameter, const Variable& x) {
  const bool wide =
      parameter.defined() && parameter.dtype() == DType::f32 && x.dtype() == DType::bf16;
  if (!wide) return parameter;
  return record("beside", {parameter}, parameter.rounded(), {},
                [](const Backward& ctx) -> Gradients { return {ctx.dy().to(DType::f32)}; });
}

}  // namespace proteus
