// Decoding of an ASPA layer for sequences side by side, on any device: the kernels of a forward
// pass route one token of every sequence and multiply by head; keys and values go to caches whose
// streams know their own length. All of it is queued where every token enters the same number of
// heads; token salience, the nucleus and a new head make the host wait for the number of rows.
#include <algorithm>

#include "aspa/attention.h"
#include "aspa/slider.h"
#include "autograd/beside.h"
#include "autograd/elementwise.h"
#include "autograd/gemm.h"
#include "autograd/grouped_gemm.h"
#include "autograd/tape.h"
#include "autograd/view.h"
#include "tensor/error.h"
#include "tensor/ops/elementwise.h"
#include "tensor/ops/rope.h"

namespace proteus {
namespace {

/// A ring that holds what the newest query sees at most, and the table of how much that is.
template <class F>
ops::StreamCache ring(const CacheShape& shape, std::int64_t H, std::int64_t D, std::int64_t anchors,
                      bool biased, F&& window, Tensor& windows) {
  const std::int64_t most = std::max<std::int64_t>(1, window(shape.longest));  // it never falls
  windows = windows_of(shape.longest, shape.device, window);
  return ops::make_stream_cache({.B = shape.B,
                                 .H = H,
                                 .capacity = std::min(anchors, shape.longest) + most,
                                 .D = D,
                                 .anchors = std::min(anchors, shape.longest),
                                 .codes = shape.type == CacheType::int8,
                                 .biased = biased,
                                 .dtype = shape.dtype,
                                 .device = shape.device});
}

/// The position of every packed row's token.
Tensor positions_of(const PackedRows& rows, const Tensor& positions) {
  Tensor out = Tensor::empty({rows.rows()}, DType::i32, positions.device());
  if (rows.rows() == 0) return out;
  rows_gather(positions.device(), {.x = positions.raw(),
                                   .y = out.raw(),
                                   .token = rows.token.data<std::int32_t>(),
                                   .rows = rows.rows(),
                                   .C = 1,
                                   .dtype = DType::i32});
  return out;
}

}  // namespace

LayerCaches AspaAttention::make_caches(const CacheShape& shape) const {
  if (bank_slots() > 0) {
    throw ConfigError(
        "aspa: make_caches: a bank is decoded on the CPU only; use --device cpu, or no bank");
  }
  LayerCaches caches;
  const auto window_of = [this](std::int64_t window) {
    return [this, window](std::int64_t n) { return slider::window(config_.alpha, window, n); };
  };
  if (config_.shared_heads > 0) {
    caches.shared = ring(shape, config_.shared_heads, config_.head_width, config_.anchors, false,
                         window_of(config_.shared_window), caches.shared_windows);
  }
  if (config_.routed_heads > 0) {
    const bool biased = config_.alpha > 0 && (config_.key_bias || salience_);
    caches.routed = ring(shape, config_.routed_heads, config_.head_width, config_.anchors, biased,
                         window_of(config_.window), caches.routed_windows);
    const Tensor every = Tensor::arange(config_.routed_heads, DType::i32);
    caches.every_head =
        every.unsqueeze(0).expand({shape.B, config_.routed_heads}).contiguous().to(shape.device);
  }
  if (weights_.mu.defined()) {
    caches.pair = Tensor::zeros({shape.B, 2, config_.width}, shape.dtype, shape.device);
  }
  return caches;
}

Tensor AspaAttention::step(const Tensor& x, const LayerCaches& caches, const Tensor& positions) {
  const NoGradGuard no_grad;
  const Variable mu(weights_.mu.defined() ? value_beside(weights_.mu, Variable(x)) : Tensor());
  const Tensor x_key = weights_.mu.defined() ? shifted_keys(x, mu.value(), caches.pair) : x;
  Tensor y;
  if (config_.shared_heads > 0) y = shared_step(x, x_key, caches, positions);
  if (router_) y = routed_step(x, x_key, caches, positions, y);
  return weights_.out_bias.defined() ? ops::add(y, value_beside(weights_.out_bias, Variable(y)))
                                     : y;
}

Tensor AspaAttention::shared_step(const Tensor& x, const Tensor& x_key, const LayerCaches& caches,
                                  const Tensor& positions) const {
  const std::int64_t B = x.size(0);
  const std::int64_t H = config_.shared_heads;
  const std::int64_t D = config_.head_width;
  const Variable like(x);
  const StepHeads heads{H, D, config_.shared_rope};
  Tensor y = attend_step(heads, x, weights_.mu.defined() ? x_key : Tensor(),
                         value_beside(weights_.qkv, like), value_beside(weights_.qkv_bias, like),
                         caches, positions);
  if (weights_.shared_gate.defined() && config_.alpha > 0) {
    const Variable z = reshape(linear(like, weights_.shared_gate), {B * H});
    y = ops::scale_rows(y.reshape({B * H, D}), z.value(), gate_factor());
  }
  return linear(Variable(y.reshape({B, H * D})), weights_.out).value();
}

RoleRouting AspaAttention::route_step(Role role, const Tensor& in, const LayerCaches& caches,
                                      const Tensor& positions) const {
  const std::int64_t B = in.size(0);
  RoleRouting out;
  if (!gating_->gated()) {
    out.heads = caches.every_head;
    out.slots = ops::Slots::filled;
    return out;
  }
  out.projected = router_->project(Variable(in.reshape({B, 1, config_.width})));
  const bool filled = gating_->fills_slots();
  const bool waits = !filled || in.device() == kCpu;
  const Gating::Choice choice =
      gating_->choose(role, out.projected.value(), {1, positions},
                      waits ? ops::NanRows::mark : ops::NanRows::take_first);
  out.heads = choice.heads;
  if (filled) out.slots = ops::Slots::filled;
  if (salience_) out.salience = gating_->salience_of(out.projected, choice.nearest);
  return out;
}

Tensor AspaAttention::routed_step(const Tensor& x, const Tensor& x_key, const LayerCaches& caches,
                                  const Tensor& positions, const Tensor& shared) const {
  if (gating_->forced() || config_.leaky_selection) {
    throw ConfigError("aspa: step: a forced or leaky selection is for forward() only");
  }
  const std::int64_t B = x.size(0);
  const std::int64_t Hr = config_.routed_heads;
  const RoleRouting query = route_step(Role::query, x, caches, positions);
  const RoleRouting key = route_step(Role::key, x_key, caches, positions);
  const Tensor roles[] = {query.heads, key.heads};
  const bool filled = query.slots == ops::Slots::filled && key.slots == ops::Slots::filled;
  const std::vector<PackedRows> rows =
      ops::pack_rows(roles, Hr, 1, filled ? ops::Slots::filled : ops::Slots::any);
  Variable query_z;
  Variable key_bias;
  if (gating_->gated()) {
    const auto z = [&](bool wanted, const RoleRouting& routing, const PackedRows& packed) {
      return wanted ? router_->row_logits(routing.projected, packed).z : Variable();
    };
    query_z = z(config_.query_gate, query, rows[0]);
    key_bias = gating_->key_bias(z(config_.key_bias, key, rows[1]), key, rows[1]);
  }
  const auto heads = [&](const Tensor& in, const Variable& weight, const Variable& bias,
                         const PackedRows& packed, bool rotated) {
    const Variable y = head_linear(Variable(in), weight, bias, packed);
    if (!rotated || rotated_width() == 0) return y.value();
    return ops::rope(y.value(), positions_of(packed, positions), {.R = rotated_width()});
  };
  const Tensor q = heads(x, weights_.q, weights_.q_bias, rows[0], true);
  const Tensor k = heads(x_key, weights_.k, weights_.k_bias, rows[1], true);
  const Tensor v = heads(x, weights_.v, weights_.v_bias, rows[1], false);
  ops::cache_append(caches.routed, k, v, key_bias.defined() ? key_bias.value() : Tensor(),
                    {rows[1].heads, rows[1].row_of});
  ops::SightOptions sight{.windows = caches.routed_windows};
  if (weights_.sink.defined() && config_.alpha > 0) {
    sight.sink = weights_.sink.value();
    sight.sink_weight = config_.alpha;
  }
  Variable o(ops::cache_attend(caches.routed, q, sight, {rows[0].heads, rows[0].row_of}));
  if (gating_->gated()) o = gating_->open(o, query_z, query, rows[0]);
  const Variable y =
      grouped_combine(o, weights_.o, rows[0], shared.defined() ? Variable(shared) : Variable());
  return y.value().reshape({B, config_.width});
}

}  // namespace proteus
