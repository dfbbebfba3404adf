#include "autograd/reduce.h"

#include "autograd/tape.h"
#include "tensor/ops/elementwise.h"
#include "tensor/ops/reduce.h"

namespace proteus {
namespace {

/// x.shape with 1 in the reduced dimensions: what a gradient has before it is expanded.
Shape kept_shape(const Shape& x, const std::vector<int>& dims) {
  Shape kept = x;
  for (int d = 0; dims.empty() && d < x.rank(); ++d) kept[d] = 1;
  for (const int d : dims) kept[d] = 1;
  return kept;
}

}  // namespace

Variable sum(const Variable& x, const std::vector<int>& dims, bool keepdim) {
  Tensor y = ops::sum(x.value(), dims, keepdim);
  return record("sum", {x}, std::move(y), {},
                [shape = x.shape(), dims](const Backward& ctx) -> Gradients {
                  return {ctx.dy().reshape(kept_shape(shape, dims)).expand(shape)};
                });
}

Variable mean(const Variable& x, const std::vector<int>& dims, bool keepdim) {
  Tensor y = ops::mean(x.value(), dims, keepdim);
  return record(
      "mean", {x}, std::move(y), {}, [shape = x.shape(), dims](const Backward& ctx) -> Gradients {
        const Shape kept = kept_shape(shape, dims);
        if (shape.numel() == 0) return {Tensor()};
        const double n = static_cast<double>(shape.numel()) / static_cast<double>(kept.numel());
        return {ops::affine(ctx.dy(), 1 / n, 0).reshape(kept).expand(shape)};
      });
}

Variable max(const Variable& x, const std::vector<int>& dims, bool keepdim) {
  auto fwd = ops::max(x.value(), dims, keepdim);
  return record("max", {x}, std::move(fwd.y), {std::move(fwd.index)},
                [shape = x.shape(), dims](const Backward& ctx) -> Gradients {
                  return {ops::max_backward(ctx.dy(), ctx.saved(0), shape, dims)};
                });
}

}  // namespace proteus
