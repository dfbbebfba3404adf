#include "autograd/loss.h"

#include "autograd/tape.h"
#include "autograd/view.h"

namespace proteus {
namespace {

// The gradient saved for a cotangent of one, times the cotangent.
Tensor scaled(const Tensor& gradient, double cotangent) {
  if (!gradient.defined() || cotangent == 1) return gradient;
  Tensor out = Tensor::zeros(gradient.shape(), gradient.dtype(), gradient.device());
  out.add_(gradient, cotangent);
  return out;
}

}  // namespace

Variable cross_entropy(const Variable& hidden, const Variable& any_weight, const Tensor& targets,
                       std::int64_t ignore_index) {
  const Variable weight = beside(any_weight, hidden);
  const bool recorded = will_record({hidden, weight});
  auto fwd =
      ops::cross_entropy(hidden.value(), weight.value(), targets, ignore_index,
                         recorded && hidden.requires_grad(), recorded && weight.requires_grad());
  return record("cross_entropy", {hidden, weight}, fwd.loss, {fwd.dhidden, fwd.dweight},
                [](const Backward& ctx) -> Gradients {
                  const double dy = ctx.dy().item();
                  return {scaled(ctx.saved(0), dy), scaled(ctx.saved(1), dy)};
                });
}

Variable cross_entropy_logits(const Variable& logits, const Tensor& targets,
                              std::int64_t ignore_index) {
  auto fwd =
      ops::cross_entropy_logits(logits.value(), targets, ignore_index, will_record({logits}));
  return record(
      "cross_entropy_logits", {logits}, fwd.loss, {fwd.dlogits},
      [](const Backward& ctx) -> Gradients { return {scaled(ctx.saved(0), ctx.dy().item())}; });
}

}  // namespace proteus
