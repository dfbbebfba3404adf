#include "autograd/attention.h"

#include "autograd/tape.h"
#include "tensor/error.h"

namespace proteus {

namespace {

Tensor vector_or_none(const Variable& v) { return v.defined() ? v.value().contiguous() : Tensor(); }

// The kernels want the width contiguous; rows and heads may be strided.
Tensor with_contiguous_width(const Tensor& x) {
  return x.rank() > 0 && x.size(-1) > 1 && x.stride(-1) != 1 ? x.contiguous() : x;
}

Tensor with_rows(const Tensor& x) {  // [B, T, H, D] → [B·T, H, D]
  return with_contiguous_width(x).reshape({x.size(0) * x.size(1), x.size(2), x.size(3)});
}

// For the gradient of x: kernels write what the plan covers.
Tensor gradient_of(const Tensor& x, bool whole) {
  return whole ? Tensor::empty(x.shape(), x.dtype(), x.device())
               : Tensor::zeros(x.shape(), x.dtype(), x.device());
}

/// The gradient of q in the place of the output, of k in that of k and of v in that of v, where
/// nobody else sees that memory: at length these are most of what a layer has at once.
Tensor gradient_in(const Tensor& place, bool whole) {
  const bool own = whole && place.is_contiguous() && place.storage().use_count() == 1;
  return own ? place : gradient_of(place, whole);
}

/// A plan without its tensors, which are saved, and with them again: those saved from `first` on.
AttentionPlan numbers_of(AttentionPlan plan) {
  plan.segments = plan.lo = plan.hi = Tensor();
  return plan;
}
AttentionPlan with_saved(AttentionPlan plan, const Backward& ctx, int first) {
  plan.segments = ctx.saved(first);
  plan.lo = ctx.saved(first + 1);
  plan.hi = ctx.saved(first + 2);
  return plan;
}

Tensor part(const Tensor& qkv, int i) { return with_rows(qkv.select(2, i)); }

}  // namespace

Variable attention(const Variable& q, const Variable& k, const Variable& v,
                   const Variable& key_bias, const Variable& sink, const AttentionPlan& plan,
                   const AttentionOptions& options) {
  const Tensor qv = with_contiguous_width(q.value());
  const Tensor kv = with_contiguous_width(k.value());
  const Tensor vv = with_contiguous_width(v.value());
  const Tensor bias = vector_or_none(key_bias);
  const Tensor sinks = vector_or_none(sink);
  auto fwd = ops::attention(qv, kv, vv, bias, sinks, plan, options);
  return record("attention", {q, k, v, key_bias, sink}, fwd.out,
                {qv, kv, vv, bias, sinks, fwd.out, fwd.lse, plan.segments, plan.lo, plan.hi},
                [options, numbers = numbers_of(plan)](const Backward& ctx) -> Gradients {
                  const AttentionPlan p = with_saved(numbers, ctx, 7);
                  const Tensor dq = gradient_in(ctx.saved(5), p.whole);
                  const Tensor dk = gradient_in(ctx.saved(1), p.whole);
                  const Tensor dv = gradient_in(ctx.saved(2), p.whole);
                  const auto grads = ops::attention_backward(
                      ctx.saved(0), ctx.saved(1), ctx.saved(2), ctx.saved(3), ctx.saved(4), p,
                      options, {ctx.saved(5), ctx.saved(6)}, ctx.dy(), dq, dk, dv);
                  return {dq, dk, dv, grads.dkey_bias, grads.dsink};
                });
}

Variable attention(const Variable& q, const Variable& k, const Variable& v,
                   const AttentionOptions& options) {
  if (q.value().rank() != 4 || k.value().rank() != 4 || v.shape() != k.shape() ||
      q.size(0) != k.size(0)) {
    throw ShapeError("attention(q, k, v): expected q [B, Tq, H, D] and k, v [B, Tk, H, D], got " +
                     to_string(q.shape()) + ", " + to_string(k.shape()) + ", " +
                     to_string(v.shape()));
  }
  const AttentionPlan plan = ops::causal_plan(q.size(0), q.size(2), q.size(1), k.size(1),
                                              options.window, options.anchors, q.device());
  auto fwd = ops::attention(with_rows(q.value()), with_rows(k.value()), with_rows(v.value()), {},
                            {}, plan, options);
  return record(
      "attention", {q, k, v}, fwd.out.reshape(q.shape()),
      {q.value(), k.value(), v.value(), fwd.out, fwd.lse, plan.segments, plan.lo, plan.hi},
      [options, numbers = numbers_of(plan)](const Backward& ctx) -> Gradients {
        const AttentionPlan p = with_saved(numbers, ctx, 5);
        Gradients grads;
        for (int i = 0; i < 3; ++i) grads.push_back(gradient_of(ctx.saved(i), p.whole));
        ops::attention_backward(with_rows(ctx.saved(0)), with_rows(ctx.saved(1)),
                                with_rows(ctx.saved(2)), {}, {}, p, options,
                                {ctx.saved(3), ctx.saved(4)}, with_rows(ctx.dy()),
                                with_rows(grads[0]), with_rows(grads[1]), with_rows(grads[2]));
        return grads;
      });
}

Variable attention_qkv(const Variable& qkv, const AttentionOptions& options) {
  if (qkv.value().rank() != 5) {
    throw ShapeError("attention_qkv(qkv): expected [B, T, 3, H, D], got " + to_string(qkv.shape()));
  }
  return attention_qkv(qkv,
                       ops::causal_plan(qkv.size(0), qkv.size(3), qkv.size(1), qkv.size(1),
                                        options.window, options.anchors, qkv.device()),
                       options);
}

Variable attention_qkv(const Variable& qkv, const AttentionPlan& plan,
                       const AttentionOptions& options) {
  if (qkv.value().rank() != 5 || qkv.size(2) != 3) {
    throw ShapeError("attention_qkv(qkv): expected [B, T, 3, H, D], got " + to_string(qkv.shape()));
  }
  const Tensor x = qkv.value().contiguous();
  auto fwd = ops::attention(part(x, 0), part(x, 1), part(x, 2), {}, {}, plan, options);
  return record(
      "attention_qkv", {qkv}, fwd.out.reshape({qkv.size(0), qkv.size(1), qkv.size(3), qkv.size(4)}),
      {x, fwd.out, fwd.lse, plan.segments, plan.lo, plan.hi},
      [options, numbers = numbers_of(plan)](const Backward& ctx) -> Gradients {
        const AttentionPlan p = with_saved(numbers, ctx, 3);
        const Tensor& saved = ctx.saved(0);
        const Tensor dqkv = gradient_of(saved, p.whole);
        ops::attention_backward(part(saved, 0), part(saved, 1), part(saved, 2), {}, {}, p, options,
                                {ctx.saved(1), ctx.saved(2)}, with_rows(ctx.dy()), part(dqkv, 0),
                                part(dqkv, 1), part(dqkv, 2));
        return {dqkv};
      });
}

}  // namespace proteus
