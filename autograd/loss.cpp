#include "autograd/loss.h"

#include "autograd/beside.h"
#include "autograd/tape.h"

namespace proteus {
namespace {

// The gradient saved for a cotangent of one, times the cotangent; it is used once, and changed in
// place.
Tensor scaled(const Tensor& gradient, const Tensor& cotangent) {
  if (gradient.defined()) ops::rescale_gradient(gradient, cotangent);
  return gradient;
}

}  // namespace

Variable cross_entropy(const Variable& hidden, const Variable& weight,
                       const ops::Targets& targets) {
  const bool recorded = will_record({hidden, weight});
  auto fwd =
      ops::cross_entropy(hidden.value(), value_beside(weight, hidden), targets,
                         recorded && hidden.requires_grad(), recorded && weight.requires_grad());
  return record("cross_entropy", {hidden, weight}, fwd.loss, {fwd.dhidden, fwd.dweight},
                [dtype = weight.dtype()](const Backward& ctx) -> Gradients {
                  Gradients g{scaled(ctx.saved(0), ctx.dy()), scaled(ctx.saved(1), ctx.dy())};
                  if (g[1].defined()) g[1] = g[1].to(dtype);
                  return g;
                });
}

Variable cross_entropy(const Variable& hidden, const Variable& weight, const Tensor& targets,
                       std::int64_t ignore_index) {
  return cross_entropy(hidden, weight,
                       ops::ready_targets(targets, weight.size(0), ignore_index, hidden.device()));
}

Variable cross_entropy_logits(const Variable& logits, const Tensor& targets,
                              std::int64_t ignore_index) {
  auto fwd =
      ops::cross_entropy_logits(logits.value(), targets, ignore_index, will_record({logits}));
  return record("cross_entropy_logits", {logits}, fwd.loss, {fwd.dlogits},
                [](const Backward& ctx) -> Gradients { return {scaled(ctx.saved(0), ctx.dy())}; });
}

}  // namespace proteus
