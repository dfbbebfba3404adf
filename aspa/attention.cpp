#include "aspa/attention.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "aspa/slider.h"
#include "autograd/attention.h"
#include "autograd/beside.h"
#include "autograd/checkpoint.h"
#include "autograd/elementwise.h"
#include "autograd/gemm.h"
#include "autograd/grouped_gemm.h"
#include "autograd/rope.h"
#include "autograd/tape.h"
#include "autograd/view.h"
#include "nn/init.h"
#include "tensor/error.h"
#include "tensor/ops/elementwise.h"
#include "tensor/ops/rope.h"
#include "tensor/queue.h"

namespace proteus {
namespace {

constexpr double kKeyShiftInit = 0.5;

// Pairs (query, key) of one stream of n entries: sum over its queries of what they see.
double visited_pairs(double alpha, std::int64_t window, std::int64_t anchors, double entries) {
  double pairs = 0;
  const auto n = static_cast<std::int64_t>(entries);
  for (std::int64_t i = 1; i <= n; ++i) {
    const std::int64_t seen = slider::window(alpha, window, i);
    pairs += static_cast<double>(seen + std::min(anchors, i - seen));
  }
  return n > 0 ? pairs * entries / static_cast<double>(n) : entries;
}

}  // namespace

Variable head_linear(const Variable& x, const Variable& weight, const Variable& bias,
                     const PackedRows& rows) {
  const Variable y = grouped_linear(x, weight, rows);
  if (!bias.defined()) return y;
  const Variable one(Tensor::full({x.size(0), 1}, 1, x.dtype(), x.device()));
  return add(y, grouped_linear(one, reshape(bias, {bias.size(0), 1, bias.size(1)}), rows));
}

AspaAttention::AspaAttention(const AspaConfig& config, double output_std, Generator& init,
                             Generator& generator)
    : config_(config), generator_(generator) {
  config.validate();
  if (config.shared_heads > 0) make_shared(output_std, init);
  if (config.routed_heads > 0) make_routed(output_std, init);
  if (config.key_shift) {
    weights_.mu =
        add_parameter("mu", Tensor::full({config.width}, kKeyShiftInit, config.dtype), Decay::no);
  }
  if (config.bias) {
    weights_.out_bias =
        add_parameter("out.bias", Tensor::zeros({config.width}, config.dtype), Decay::no);
  }
  set_alpha(config.alpha);
}

void AspaAttention::make_shared(double output_std, Generator& init) {
  const AspaConfig& c = config_;
  const std::int64_t HD = c.shared_heads * c.head_width;
  weights_.qkv =
      add_parameter("qkv.weight", normal_init({3 * HD, c.width}, init, kInitStd, c.dtype));
  weights_.out = add_parameter("out.weight", normal_init({c.width, HD}, init, output_std, c.dtype));
  if (c.bias) {
    weights_.qkv_bias = add_parameter("qkv.bias", Tensor::zeros({3 * HD}, c.dtype), Decay::no);
  }
  if (c.shared_gate) {
    weights_.shared_gate =
        add_parameter("shared_gate.weight",
                      normal_init({c.shared_heads, c.width}, init, kInitStd, c.dtype), Decay::no);
  }
}

void AspaAttention::make_routed(double output_std, Generator& init) {
  const AspaConfig& c = config_;
  const Shape in{c.routed_heads, c.width, c.head_width};
  const Shape out{c.routed_heads, c.head_width, c.width};
  weights_.q = add_parameter("routed.q", normal_init(in, init, kInitStd, c.dtype));
  weights_.k = add_parameter("routed.k", normal_init(in, init, kInitStd, c.dtype));
  weights_.v = add_parameter("routed.v", normal_init(in, init, kInitStd, c.dtype));
  weights_.o = add_parameter("routed.o", normal_init(out, init, output_std, c.dtype));
  if (c.bias) {
    const auto zeros = [&](const char* name) {
      return add_parameter(name, Tensor::zeros({c.routed_heads, c.head_width}, c.dtype), Decay::no);
    };
    weights_.q_bias = zeros("routed.q_bias");
    weights_.k_bias = zeros("routed.k_bias");
    weights_.v_bias = zeros("routed.v_bias");
  }
  if (c.sink) {
    const DType accum = c.dtype == DType::f64 ? DType::f64 : DType::f32;
    weights_.sink = add_parameter("sink", Tensor::zeros({c.routed_heads}, accum), Decay::no);
  }
  router_ = &add_child("router", std::make_unique<Router>(c, init));
  if (c.salience.enabled()) {
    salience_ = &add_child("salience", std::make_unique<Salience>(c, init));
  }
  gating_ = std::make_unique<Gating>(config_, *router_, salience_);
  gating_->add_table({"routed.q", weights_.q, kInitStd});
  gating_->add_table({"routed.k", weights_.k, kInitStd});
  gating_->add_table({"routed.v", weights_.v, kInitStd});
  gating_->add_table({"routed.o", weights_.o});
  if (c.sink) gating_->add_table({"sink", weights_.sink});
  if (c.bias) {
    gating_->add_table({"routed.q_bias", weights_.q_bias});
    gating_->add_table({"routed.k_bias", weights_.k_bias});
    gating_->add_table({"routed.v_bias", weights_.v_bias});
  }
}

void AspaAttention::set_alpha(double alpha) {
  AspaConfig changed = config_;
  changed.alpha = alpha;
  changed.validate();
  config_ = changed;
  if (gating_) gating_->refresh();
}

std::int64_t AspaAttention::k() const { return gating_->k(); }

void AspaAttention::set_window(std::int64_t window) {
  AspaConfig changed = config_;
  changed.window = window;
  changed.validate();
  config_ = changed;
  visible_ = Tensor();
}

void AspaAttention::set_k(std::int64_t k) { gating().set_k(k); }

Router& AspaAttention::router() { return gating().router(); }

const Router& AspaAttention::router() const { return gating().router(); }

const AspaTelemetry& AspaAttention::telemetry() const {
  static const AspaTelemetry nothing;
  return gating_ ? gating_->telemetry() : nothing;
}

std::int64_t AspaAttention::rotated_width() const {
  switch (config_.routed_rope) {
    case RopeSpan::none:
      return 0;
    case RopeSpan::half:
      return config_.head_width / 2;
    case RopeSpan::full:
      return config_.head_width;
  }
  return 0;
}

Variable AspaAttention::forward(const Variable& x) {
  if (x.value().rank() != 3 || x.size(2) != config_.width) {
    throw ShapeError(fmt::format("aspa(x): x: expected [B, T, {}] (= width), got {}", config_.width,
                                 to_string(x.shape())));
  }
  const Sequences sequences{x.size(0), x.size(1)};
  // What multiplies tokens has the same rows as its input: gradients are summed in one place.
  const Shape as_rows{sequences.rows(), config_.width};
  Variable shifted = weights_.mu.defined() ? key_shift(x, weights_.mu) : Variable();
  const Variable rows = reshape(x, as_rows);
  if (shifted.defined()) {
    shifted = made_again(reshape(shifted, as_rows), {x.value(), value_beside(weights_.mu, x)},
                         [as_rows](const std::vector<Tensor>& from) {
                           return ops::key_shift(from[0], from[1]).reshape(as_rows);
                         });
  } else {
    shifted = rows;
  }
  Variable shared;
  Branch branch(x.device(), sequences.few_rows(), [&] {
    if (config_.shared_heads > 0) shared = shared_forward(rows, shifted, sequences);
  });
  Variable y;
  if (router_ && !runs_dense(sequences.T)) {
    y = routed_forward(rows, std::move(shifted), shared, sequences, branch);
  } else {
    branch.join();
    if (shared.defined()) y = linear(shared, weights_.out);
    if (router_) y = dense_forward(rows, shifted, y, sequences);
  }
  y = reshape(y, x.shape());
  return weights_.out_bias.defined() ? add(y, beside(weights_.out_bias, y)) : y;
}

AttentionOptions AspaAttention::attention_options() {
  AttentionOptions options;
  if (training() && config_.dropout > 0) {
    options.dropout = config_.dropout;
    options.key = next_key(generator_);
  }
  return options;
}

Variable AspaAttention::shared_forward(const Variable& x, const Variable& x_key,
                                       const Sequences& sequences) {
  const std::int64_t B = sequences.B;
  const std::int64_t T = sequences.T;
  const std::int64_t H = config_.shared_heads;
  const std::int64_t D = config_.head_width;
  const auto thirds = [](const Variable& all) {
    return all.defined() ? split(all, 0, 3) : std::vector<Variable>(3);
  };
  const std::vector<Variable> weights = thirds(weights_.qkv);
  const std::vector<Variable> biases = thirds(weights_.qkv_bias);
  const auto part = [&](std::size_t i, const Variable& in) {
    const Variable y = linear(in, weights[i], biases[i]);
    const bool rotated = i < 2 && config_.shared_rope;
    return reshape(rotated ? rope(reshape(y, {B, T, H, D}), D) : y, {B * T, H, D});
  };
  const Variable q = part(0, x);
  const Variable k = part(1, x_key);
  const auto window = [this](std::int64_t n) {
    return slider::window(config_.alpha, config_.shared_window, n);
  };
  const AttentionPlan& plan = shared_plan_.of(
      {B, H, T, config_.shared_window, config_.anchors, config_.alpha, x.device()},
      [&] { return ops::causal_plan(B, H, T, T, window, config_.anchors, x.device()); });
  Variable y = attention(q, k, part(2, x), {}, {}, plan, attention_options());
  if (weights_.shared_gate.defined() && config_.alpha > 0) {
    const Variable gate = reshape(linear(x, weights_.shared_gate), {B * T * H});
    y = open_rows(reshape(y, {B * T * H, D}), gate, gate_factor().a, gate_factor().b);
  }
  return reshape(y, {B * T, H * D});
}

RowFactor AspaAttention::gate_factor() const {
  return {.gated = true, .a = 2 * config_.alpha, .b = 1 - config_.alpha};
}

bool AspaAttention::runs_dense(std::int64_t T) const {
  if (!router_ || gating_->observed() || watching_) return false;
  if (!gating_->gated()) return true;
  return !training() && k() == config_.routed_heads && config_.selects_everything(T);
}

Variable AspaAttention::dense_forward(const Variable& x, const Variable& x_key,
                                      const Variable& shared, const Sequences& sequences) {
  const std::int64_t B = sequences.B;
  const std::int64_t T = sequences.T;
  const std::int64_t H = config_.routed_heads;
  const std::int64_t D = config_.head_width;
  const auto heads = [&](const Variable& in, const Variable& weight, const Variable& bias) {
    const Variable rows = reshape(transpose(weight, 1, 2), {H * D, config_.width});
    const Variable y = linear(in, rows, bias.defined() ? reshape(bias, {H * D}) : bias);
    return reshape(y, {B, T, H, D});
  };
  const auto rotated = [&](const Variable& y) {
    return reshape(rotated_width() > 0 ? rope(y, rotated_width()) : y, {B * T, H, D});
  };
  const Variable q = rotated(heads(x, weights_.q, weights_.q_bias));
  const Variable k = rotated(heads(x_key, weights_.k, weights_.k_bias));
  const Variable v = reshape(heads(x, weights_.v, weights_.v_bias), {B * T, H, D});
  AttentionOptions options = attention_options();
  const bool sink = weights_.sink.defined() && config_.alpha > 0;
  if (sink) options.sink_scale = config_.alpha;
  const AttentionPlan& plan = dense_plan_.of({.B = B, .H = H, .T = T, .device = x.device()}, [&] {
    return ops::causal_plan(B, H, T, T, 0, 0, x.device());
  });
  const Variable o = attention(q, k, v, {}, sink ? weights_.sink : Variable(), plan, options);
  const Variable out = transpose(reshape(weights_.o, {H * D, config_.width}), 0, 1);
  return linear(reshape(o, {B * T, H * D}), out, {}, shared);
}

Selection AspaAttention::select(const Variable& x) {
  const NoGradGuard no_grad;
  const Routed routed =
      route(x, weights_.mu.defined() ? key_shift(x, weights_.mu) : x, {x.size(0), x.size(1)});
  return {routed.query.heads, routed.key.heads};
}

AspaAttention::Routed AspaAttention::route(const Variable& x, const Variable& x_key,
                                           const Sequences& sequences) {
  const std::int64_t B = sequences.B;
  const std::int64_t T = sequences.T;
  const bool shifted = weights_.mu.defined();
  Routed out;
  Variable query;
  Branch beside(x.device(), shifted && sequences.few_rows(), [&] {
    if (gating_->gated()) query = router_->project(x);
    out.query = gating_->route(Role::query, query, B, T);
  });
  const Variable key = gating_->gated() && shifted ? router_->project(x_key) : query;
  out.key = gating_->route(Role::key, key, B, T);
  beside.join();
  const bool filled = out.query.slots == ops::Slots::filled && out.key.slots == ops::Slots::filled;
  out.rows =
      pack_selection({out.query.heads, out.key.heads}, B, config_.routed_heads,
                     visible_entries(T, x.device()), filled ? ops::Slots::filled : ops::Slots::any);
  return out;
}

// What is passed by value goes as soon as it has been used: at length it is most of the memory. So
// what the shared heads have found, a few heads wide, is brought to the width of a token late.
Variable AspaAttention::routed_forward(const Variable& x, Variable x_key, Variable& shared,
                                       const Sequences& sequences, Branch& beside) {
  Routed routed = route(x, x_key, sequences);
  const PackedRows& query_rows = routed.rows.query;
  const PackedRows& key_rows = routed.rows.key;
  Variable query_z;
  Variable key_bias;
  BankJudgement judgement;
  Branch logits(x.device(), sequences.few_rows(), [&] {
    if (!gating_->gated()) return;
    const RowLogitsVar query = router_->row_logits(routed.query.projected, query_rows);
    const RowLogitsVar key = router_->row_logits(routed.key.projected, key_rows);
    if (config_.query_gate) query_z = query.z;
    key_bias = gating_->key_bias(config_.key_bias ? key.z : Variable(), routed.key, key_rows);
    if (bank_slots() > 0) judgement = judge(routed.key, key_rows, key);
    if (training() && !recomputing()) {
      gating_->collect(Role::query, routed.query, query_rows, query.share);
      gating_->collect(Role::key, routed.key, key_rows, key.share);
    }
  });
  routed.query.projected = routed.key.projected = {};
  Variable y = routed_values(x, std::move(x_key), routed.rows, key_bias, judgement, logits);
  if (gating_->gated()) y = gating_->open(y, query_z, routed.query, query_rows);
  if (watching_) {
    const NoGradGuard no_grad;
    const Variable c = grouped_combine(y, weights_.o, query_rows);
    keep_consensus(c.value().reshape({sequences.B, sequences.T, config_.width}),
                   last_outputs(y.value(), query_rows));
  }
  beside.join();
  if (shared.defined()) shared = linear(shared, weights_.out);
  return grouped_combine(y, weights_.o, query_rows, std::move(shared));
}

Variable AspaAttention::routed_values(const Variable& x, Variable x_key, const RoutedRows& rows,
                                      const Variable& key_bias, const BankJudgement& judgement,
                                      Branch& beside) {
  const std::int64_t D = config_.head_width;
  const auto heads = [&](const Variable& in, const Variable& weight, const Variable& bias,
                         const PackedRows& packed) {
    return reshape(head_linear(in, weight, bias, packed), {packed.rows(), 1, D});
  };
  const auto rotated = [&](const Variable& y, const PackedRows& packed) {
    return rotated_width() > 0 ? rope(y, packed.time, rotated_width()) : y;
  };
  Variable k = heads(x_key, weights_.k, weights_.k_bias, rows.key);
  x_key = {};
  const Variable v = heads(x, weights_.v, weights_.v_bias, rows.key);
  beside.join();
  BankPlan bank;
  if (bank_slots() > 0) bank = plan_bank(rows, k.value(), v.value(), judgement);
  k = rotated(k, rows.key);
  const Variable q = rotated(heads(x, weights_.q, weights_.q_bias, rows.query), rows.query);
  AttentionOptions options = attention_options();
  const bool sink = weights_.sink.defined() && config_.alpha > 0;
  if (sink) options.sink_scale = config_.alpha;
  const Variable sinks = sink ? weights_.sink : Variable();
  const Variable o = bank_slots() > 0 ? bank_attention(q, k, v, key_bias, sinks, bank, options)
                                      : attention(q, k, v, key_bias, sinks,
                                                  stream_plan(rows, config_.anchors), options);
  return reshape(o, {rows.query.rows(), D});
}

void AspaAttention::after_step(double rate) {
  if (gating_) gating_->after_step(rate);
}

void AspaAttention::force_selection(std::optional<Selection> selection) {
  gating().force(Role::query, selection ? selection->query : Tensor());
  gating().force(Role::key, selection ? selection->key : Tensor());
  forced_bank_ = selection ? selection->bank : Tensor();
}

void AspaAttention::begin_probe() {
  if (gating_) gating_->begin_probe();
}

void AspaAttention::end_probe() {
  if (gating_) gating_->end_probe();
}

const Tensor& AspaAttention::visible_entries(std::int64_t T, Device device) {
  if (!visible_.defined() || visible_.numel() != T + 1 || visible_alpha_ != config_.alpha ||
      visible_.device() != device) {
    const Tensor visible = Tensor::empty({T + 1}, DType::i32);
    for (std::int64_t n = 0; n <= T; ++n) {
      visible.data<std::int32_t>()[n] =
          static_cast<std::int32_t>(slider::window(config_.alpha, config_.window, n));
    }
    visible_ = visible.to(device);
    visible_alpha_ = config_.alpha;
  }
  keep_for_replays(visible_);
  return visible_;
}

double AspaAttention::attention_flops_per_token(std::int64_t T) const {
  const AspaConfig& c = config_;
  const auto length = static_cast<double>(T);
  double pairs = 0;
  if (c.shared_heads > 0) {
    pairs += static_cast<double>(c.shared_heads) *
             visited_pairs(c.alpha, c.shared_window, c.anchors, length);
  }
  if (c.routed_heads > 0) {
    const auto Hr = static_cast<double>(c.routed_heads);
    const double entries = length * static_cast<double>(k()) / Hr;
    pairs += Hr * (bank_slots() > 0 ? bank_pairs(c, entries, length)
                                    : visited_pairs(c.alpha, c.window, c.anchors, entries));
  }
  return 4 * static_cast<double>(c.head_width) * pairs / length;
}

double AspaAttention::total_flops_per_token(std::int64_t T) const {
  const AspaConfig& c = config_;
  double weights = 0;
  double routing = 0;
  for (const Variable* v : {&weights_.qkv, &weights_.out}) {
    if (v->defined()) weights += static_cast<double>(v->value().numel());
  }
  const bool gated = c.alpha > 0;
  if (weights_.shared_gate.defined() && gated) {
    weights += static_cast<double>(weights_.shared_gate.value().numel());
  }
  if (c.routed_heads > 0) {
    weights += static_cast<double>(k() * 4 * c.width * c.head_width);
    if (gated) routing = (c.key_shift ? 2 : 1) * router_->flops_per_token();
  }
  return 2 * weights + routing + attention_flops_per_token(T);
}

std::int64_t AspaAttention::active_parameter_count() const {
  if (config_.routed_heads == 0) return parameter_count();
  std::int64_t per_head = 0;
  for (const Variable* v : {&weights_.q, &weights_.k, &weights_.v, &weights_.o, &weights_.sink,
                            &weights_.q_bias, &weights_.k_bias, &weights_.v_bias}) {
    if (v->defined()) per_head += v->value().numel() / config_.routed_heads;
  }
  return parameter_count() - (config_.routed_heads - k()) * per_head;
}

}  // namespace proteus
