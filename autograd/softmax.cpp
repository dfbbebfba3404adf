#include "autograd/softmax.h"

#include "autograd/tape.h"
#include "tensor/ops/softmax.h"

namespace proteus {
namespace {

Variable record_softmax(SoftmaxOp op, const char* name, const Variable& x) {
  const bool from_x = op != SoftmaxOp::softmax;
  auto fwd = ops::softmax_forward(op, x.value(), from_x && will_record({x}));
  std::vector<Saved> saved{from_x ? x.value() : Tensor(), from_x ? Tensor() : fwd.y, fwd.lse};
  return record(
      name, {x}, std::move(fwd.y), std::move(saved), [op](const Backward& ctx) -> Gradients {
        return {ops::softmax_backward(op, ctx.saved(0), ctx.saved(1), ctx.saved(2), ctx.dy())};
      });
}

}  // namespace

Variable softmax(const Variable& x) { return record_softmax(SoftmaxOp::softmax, "softmax", x); }

Variable log_softmax(const Variable& x) {
  return record_softmax(SoftmaxOp::log_softmax, "log_softmax", x);
}

Variable logsumexp(const Variable& x) {
  return record_softmax(SoftmaxOp::logsumexp, "logsumexp", x);
}

}  // namespace proteus
