#include "aspa/attention.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "aspa/balance.h"
#include "aspa/controllers.h"
#include "aspa/slider.h"
#include "autograd/attention.h"
#include "autograd/checkpoint.h"
#include "autograd/elementwise.h"
#include "autograd/gemm.h"
#include "autograd/grouped_gemm.h"
#include "autograd/pack.h"
#include "autograd/rope.h"
#include "autograd/tape.h"
#include "autograd/view.h"
#include "nn/init.h"
#include "tensor/error.h"
#include "tensor/ops/rope.h"
#include "tensor/ops/select.h"

namespace proteus {
namespace {

constexpr double kKeyShiftInit = 0.5;
constexpr std::int64_t kRecentTokens = 64;  // offered to dead gates, per optimizer step
constexpr std::uint64_t kNoiseStream = std::uint64_t{1} << 40;  // of revived gates, per step

// Some rows of x [N, R], evenly spread.
Tensor spread_rows(const Tensor& x) {
  const std::int64_t m = std::min(kRecentTokens, x.size(0));
  Tensor out = Tensor::empty({m, x.size(1)}, x.dtype(), x.device());
  for (std::int64_t i = 0; i < m; ++i) out.select(0, i).copy_(x.select(0, i * x.size(0) / m));
  return out;
}

Tensor every_head(std::int64_t tokens, std::int64_t Hr) {
  return Tensor::arange(Hr, DType::i32).unsqueeze(0).expand({tokens, Hr}).contiguous();
}

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
  set_alpha(config.alpha);
}

void AspaAttention::make_shared(double output_std, Generator& init) {
  const AspaConfig& c = config_;
  const std::int64_t HD = c.shared_heads * c.head_width;
  weights_.qkv =
      add_parameter("qkv.weight", normal_init({3 * HD, c.width}, init, kInitStd, c.dtype));
  weights_.out = add_parameter("out.weight", normal_init({c.width, HD}, init, output_std, c.dtype));
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
  if (c.sink) {
    const DType accum = c.dtype == DType::f64 ? DType::f64 : DType::f32;
    weights_.sink = add_parameter("sink", Tensor::zeros({c.routed_heads}, accum), Decay::no);
  }
  router_ = &add_child("router", std::make_unique<Router>(c, init));
  if (c.salience.enabled()) {
    salience_ = &add_child("salience", std::make_unique<Salience>(c, init));
  }
}

void AspaAttention::set_alpha(double alpha) {
  AspaConfig changed = config_;
  changed.alpha = alpha;
  changed.validate();
  config_ = changed;
  telemetry_.alpha = alpha;
  telemetry_.k = config_.routed_heads > 0 ? k() : 0;
  telemetry_.density = config_.routed_heads > 0 ? static_cast<double>(telemetry_.k) /
                                                      static_cast<double>(config_.routed_heads)
                                                : 0;
}

std::int64_t AspaAttention::k() const {
  return slider::routed_heads(config_.alpha, router_->established(), router_->k());
}

void AspaAttention::set_window(std::int64_t window) {
  AspaConfig changed = config_;
  changed.window = window;
  changed.validate();
  config_ = changed;
  visible_ = Tensor();
}

void AspaAttention::set_k(std::int64_t k) {
  if (k < 1 || k > router().established()) {
    throw ConfigError(fmt::format("aspa: k: expected 1 to {} (= established routed heads), got {}",
                                  router_->established(), k));
  }
  router_->set_k(k);
  telemetry_.k = this->k();
}

void AspaAttention::control_density() {
  telemetry_.decision.reset();
  const DensityConfig& d = config_.density;
  if (d.target <= 0 || router_->steps() % d.every != 0) return;
  const std::int64_t before = router_->k();
  const std::int64_t after = controlled_k(d, telemetry_.density, before, router_->established());
  if (after == before) return;
  telemetry_.decision = {router_->steps(), telemetry_.density, before, after};
  set_k(after);
}

HeadTables AspaAttention::head_tables() const {
  return {weights_.q.value(), weights_.k.value(), weights_.v.value(), weights_.o.value(),
          weights_.sink.defined() ? weights_.sink.value() : Tensor()};
}

void AspaAttention::replace(const RouterTables& tables, const HeadTables& heads) {
  router().replace(tables);
  weights_.q.resize(heads.q);
  weights_.k.resize(heads.k);
  weights_.v.resize(heads.v);
  weights_.o.resize(heads.o);
  if (weights_.sink.defined()) weights_.sink.resize(heads.sink);
  config_.routed_heads = tables.theta_q.numel();
  for (auto& counts : counts_) counts.clear();
  kept_ = {};
  tokens_ = 0;
  update_ = {};
  probe_.reset();
  last_probe_.reset();
  set_alpha(config_.alpha);
}

Router& AspaAttention::router() {
  if (!router_) throw ConfigError("aspa: router: this layer has no routed heads");
  return *router_;
}

const Router& AspaAttention::router() const {
  if (!router_) throw ConfigError("aspa: router: this layer has no routed heads");
  return *router_;
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
  const Variable x_key = weights_.mu.defined() ? key_shift(x, weights_.mu) : x;
  Variable y;
  if (config_.shared_heads > 0) y = shared_forward(x, x_key);
  if (!router_) return y;
  const Variable routed = routed_forward(x, x_key);
  return y.defined() ? add(y, routed) : routed;
}

AttentionOptions AspaAttention::attention_options() {
  AttentionOptions options;
  if (training() && config_.dropout > 0) {
    options.dropout = config_.dropout;
    options.key = next_key(generator_);
  }
  return options;
}

Variable AspaAttention::shared_forward(const Variable& x, const Variable& x_key) {
  const std::int64_t B = x.size(0);
  const std::int64_t T = x.size(1);
  const std::int64_t H = config_.shared_heads;
  const std::int64_t D = config_.head_width;
  const auto part = [&](int i, const Variable& in) {
    return reshape(linear(in, slice(weights_.qkv, 0, i * H * D, (i + 1) * H * D)), {B * T, H, D});
  };
  const Tensor positions = ops::sequence_positions(B, T);
  const Variable q = rope(part(0, x), positions, D);
  const Variable k = rope(part(1, x_key), positions, D);
  const AttentionPlan plan = ops::causal_plan(
      B, H, T, T,
      [this](std::int64_t n) { return slider::window(config_.alpha, config_.shared_window, n); },
      config_.anchors, x.device());
  Variable y = attention(q, k, part(2, x), {}, {}, plan, attention_options());
  if (weights_.shared_gate.defined() && config_.alpha > 0) {
    const Variable gate = reshape(linear(x, weights_.shared_gate), {B * T * H});
    y = scale_rows(reshape(y, {B * T * H, D}), blended_gate(gate));
  }
  return linear(reshape(y, {B, T, H * D}), weights_.out);
}

Variable AspaAttention::blended_gate(const Variable& z) const {
  return shift(scale(sigmoid(z), 2 * config_.alpha), 1 - config_.alpha);
}

Selection AspaAttention::select(const Variable& x) {
  const NoGradGuard no_grad;
  return route(x, weights_.mu.defined() ? key_shift(x, weights_.mu) : x).selection;
}

AspaAttention::Routed AspaAttention::route(const Variable& x, const Variable& x_key) {
  const std::int64_t B = x.size(0);
  const std::int64_t N = B * x.size(1);
  const std::int64_t Hr = config_.routed_heads;
  Routed out;
  // At alpha = 0 every token enters every head and every gate is off: the router does not run.
  const bool gated = config_.alpha > 0;
  if (gated) {
    out.query = router_->project(x);
    out.key = weights_.mu.defined() ? router_->project(x_key) : out.query;
  }
  const Tensor time = gated ? ops::sequence_positions(B, x.size(1)) : Tensor();
  const auto decided = decide([&]() -> std::vector<Tensor> {
    if (!gated) return {every_head(N, Hr), {}, {}, {}};
    if (forced_ && !salience_) return {{}, {}, {}, {}};
    const Choice query = choose(Role::query, out.query.value(), time);
    const Choice key = choose(Role::key, out.key.value(), time);
    return {query.heads, key.heads, query.nearest, key.nearest};
  });
  if (forced_) {
    check_selection(*forced_, N, Hr);
    out.selection = *forced_;
  } else {
    out.selection = {decided[0], gated ? decided[1] : decided[0]};
  }
  if (gated && salience_) {
    out.query_salience = salience_of(out.query, decided[2]);
    out.key_salience = salience_of(out.key, decided[3]);
  }
  if (probing_) probe_ = out.selection;
  out.rows = pack_selection(out.selection, B, Hr, visible_entries(x.size(1)));
  return out;
}

AspaAttention::Choice AspaAttention::choose(Role role, const Tensor& projected,
                                            const Tensor& time) const {
  Choice out;
  if (salience_) {
    auto scored = router_->logits_and_nearest(projected);
    out.z = std::move(scored.z);
    out.nearest = std::move(scored.nearest);
  } else {
    out.z = router_->logits(projected);
  }
  const Tensor& theta = router_->theta(role);
  Tensor count;
  if (config_.top_p < 1) {
    const std::int64_t least =
        slider::routed_heads(config_.alpha, router_->established(), config_.k_min);
    count = ops::nucleus_counts(out.z, config_.top_p, least, k(), theta);
  }
  if (salience_) {
    const NoGradGuard no_grad;
    const Tensor scores = salience_of(Variable(projected), out.nearest).value();
    count = salience_->keep_counts(role, scores, time, config_.alpha, k(), count);
  }
  out.heads = ops::topk_heads(out.z, k(), theta, count, router_->extra_heads());
  return out;
}

Variable AspaAttention::salience_of(const Variable& projected, const Tensor& nearest) const {
  return salience_->scores(projected, router_->gate_state().p, nearest);
}

Variable AspaAttention::row_salience(const Variable& salience, const PackedRows& rows) const {
  return reshape(gather_rows(reshape(salience, {salience.size(0), 1}), rows), {rows.rows()});
}

Variable AspaAttention::routed_forward(const Variable& x, const Variable& x_key) {
  const Routed routed = route(x, x_key);
  const PackedRows& query_rows = routed.rows.query;
  Variable key_bias;
  Variable gate;
  if (config_.alpha > 0) {
    const RowLogitsVar query = router_->row_logits(routed.query, query_rows);
    const RowLogitsVar key = router_->row_logits(routed.key, routed.rows.key);
    // r = (1−α) + α·2σ(z)·2σ(S) and β = α·(log σ(z) + log 2σ(S)).
    if (config_.query_gate) gate = scale(sigmoid(query.z), 2);
    if (config_.key_bias) key_bias = log_sigmoid(key.z);
    if (salience_) {
      const Variable weight = scale(sigmoid(row_salience(routed.query_salience, query_rows)), 2);
      gate = gate.defined() ? mul(gate, weight) : weight;
      const Variable bias =
          shift(log_sigmoid(row_salience(routed.key_salience, routed.rows.key)), std::log(2.0));
      key_bias = key_bias.defined() ? add(key_bias, bias) : bias;
    }
    if (gate.defined()) gate = shift(scale(gate, config_.alpha), 1 - config_.alpha);
    if (key_bias.defined()) key_bias = scale(key_bias, config_.alpha);
    if (training() && !recomputing()) collect(routed, query.share, key.share);
  }
  Variable y = routed_values(x, x_key, routed.rows, key_bias);
  if (gate.defined()) y = scale_rows(y, gate);
  return reshape(grouped_combine(y, weights_.o, query_rows), x.shape());
}

Variable AspaAttention::routed_values(const Variable& x, const Variable& x_key,
                                      const RoutedRows& rows, const Variable& key_bias) {
  const std::int64_t D = config_.head_width;
  const std::int64_t N = x.size(0) * x.size(1);
  const Variable tokens = reshape(x, {N, config_.width});
  const Variable key_tokens = reshape(x_key, {N, config_.width});
  const auto heads = [&](const Variable& in, const Variable& weight, const PackedRows& packed) {
    return reshape(grouped_linear(in, weight, packed), {packed.rows(), 1, D});
  };
  Variable q = heads(tokens, weights_.q, rows.query);
  Variable k = heads(key_tokens, weights_.k, rows.key);
  const Variable v = heads(tokens, weights_.v, rows.key);
  if (rotated_width() > 0) {
    q = rope(q, row_positions(rows.query), rotated_width());
    k = rope(k, row_positions(rows.key), rotated_width());
  }
  AttentionOptions options = attention_options();
  const bool sink = weights_.sink.defined() && config_.alpha > 0;
  if (sink) options.sink_scale = config_.alpha;
  const Variable o = attention(q, k, v, key_bias, sink ? weights_.sink : Variable(),
                               stream_plan(rows, config_.anchors), options);
  return reshape(o, {rows.query.rows(), D});
}

void AspaAttention::collect(const Routed& routed, const Tensor& query_share,
                            const Tensor& key_share) {
  tokens_ += routed.query.size(0);
  collect_role(Role::query, routed.query, routed.rows.query, query_share);
  collect_role(Role::key, routed.key, routed.rows.key, key_share);
  if (!salience_) return;
  salience_->collect(Role::query, routed.query_salience.value());
  salience_->collect(Role::key, routed.key_salience.value());
}

void AspaAttention::collect_role(Role role, const Variable& projected, const PackedRows& rows,
                                 const Tensor& share) {
  const std::int64_t B = rows.sequences();
  const Tensor host = rows.offsets.to(kCpu);
  const auto* offsets = host.data<std::int32_t>();
  auto& counts = counts_[static_cast<std::size_t>(role)];
  counts.resize(static_cast<std::size_t>(config_.routed_heads));
  for (std::int64_t h = 0; h < config_.routed_heads; ++h) {
    counts[static_cast<std::size_t>(h)] += offsets[(h + 1) * B] - offsets[h * B];
  }
  auto& kept = kept_[static_cast<std::size_t>(role)];
  for (std::int64_t n = 0; n < rows.tokens(); ++n) {
    kept += rows.row_of.data<std::int32_t>()[n * rows.slots()] >= 0 ? 1 : 0;
  }
  if (!config_.prototypes.enabled) return;
  const ops::GateStatistics sums = router_->statistics(projected.value(), rows, share);
  if (!update_.weight_sum.defined()) {
    update_.weight_sum = sums.weight_sum;
    update_.weighted_sum = sums.weighted_sum;
  } else {
    update_.weight_sum.add_(sums.weight_sum);
    update_.weighted_sum.add_(sums.weighted_sum);
  }
  update_.recent = spread_rows(projected.value());
}

void AspaAttention::after_step(double rate) {
  if (!router_ || tokens_ == 0) return;
  const auto loads = [&](Role role) {
    std::vector<double> load;
    for (const std::int64_t n : counts_[static_cast<std::size_t>(role)]) {
      load.push_back(static_cast<double>(n) / static_cast<double>(tokens_));
    }
    return load;
  };
  const RoleLoads role_loads{loads(Role::query), loads(Role::key)};
  const std::int64_t step = router_->steps();
  update_thresholds(config_.balance, rate, role_loads, router_->theta(Role::query),
                    router_->theta(Role::key));
  if (salience_) salience_->after_step(rate);
  if (config_.prototypes.enabled) {
    const GateState gates = router_->gate_state();
    PrototypeConfig prototypes = config_.prototypes;  // they settle with the router, too
    if (config_.balance.follow_rate) prototypes.ema = 1 - (1 - prototypes.ema) * rate;
    update_prototypes(prototypes, gates, update_);
    telemetry_.dead_gates = static_cast<std::int64_t>(dead_gates(config_.prototypes, gates).size());
    telemetry_.revived = 0;
    if (config_.prototypes.revive) {
      const RngKey noise{config_.seed, kNoiseStream * static_cast<std::uint64_t>(step + 1)};
      telemetry_.revived =
          static_cast<std::int64_t>(revive_gates(config_.prototypes, gates, update_, noise).size());
    }
    telemetry_.lambda = router_->lambda().value().item();
  }
  router_->count_step();
  telemetry_.steps = router_->steps();
  telemetry_.query = describe_load(role_loads.query);
  telemetry_.key = describe_load(role_loads.key);
  telemetry_.query.kept = static_cast<double>(kept_[0]) / static_cast<double>(tokens_);
  telemetry_.key.kept = static_cast<double>(kept_[1]) / static_cast<double>(tokens_);
  telemetry_.density = (telemetry_.query.heads + telemetry_.key.heads) / 2 /
                       static_cast<double>(config_.routed_heads);
  for (auto& counts : counts_) counts.clear();
  kept_ = {};
  tokens_ = 0;
  update_ = {};
  control_density();
}

void AspaAttention::force_selection(std::optional<Selection> selection) {
  forced_ = std::move(selection);
}

void AspaAttention::begin_probe() {
  probing_ = true;
  probe_.reset();
}

void AspaAttention::end_probe() {
  probing_ = false;
  if (!probe_) return;
  if (last_probe_ && last_probe_->query.size(0) == probe_->query.size(0)) {
    telemetry_.churn_query = churn(last_probe_->query, probe_->query);
    telemetry_.churn_key = churn(last_probe_->key, probe_->key);
  }
  last_probe_ = std::move(probe_);
  probe_.reset();
}

const Tensor& AspaAttention::visible_entries(std::int64_t T) {
  if (!visible_.defined() || visible_.numel() != T + 1 || visible_alpha_ != config_.alpha) {
    visible_ = Tensor::empty({T + 1}, DType::i32);
    visible_alpha_ = config_.alpha;
    for (std::int64_t n = 0; n <= T; ++n) {
      visible_.data<std::int32_t>()[n] =
          static_cast<std::int32_t>(slider::window(config_.alpha, config_.window, n));
    }
  }
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
    pairs += Hr * visited_pairs(c.alpha, c.window, c.anchors, entries);
  }
  return 4 * static_cast<double>(c.head_width) * pairs / length;
}

double AspaAttention::total_flops_per_token(std::int64_t T) const {
  const AspaConfig& c = config_;
  double weights = 0;
  for (const Variable* v : {&weights_.qkv, &weights_.out}) {
    if (v->defined()) weights += static_cast<double>(v->value().numel());
  }
  const bool gated = c.alpha > 0;
  if (weights_.shared_gate.defined() && gated) {
    weights += static_cast<double>(weights_.shared_gate.value().numel());
  }
  if (c.routed_heads > 0) {
    weights += static_cast<double>(k() * 4 * c.width * c.head_width);
    // Per role: U, and a direction and a prototype per gate.
    const double roles = c.key_shift ? 2 : 1;
    const std::int64_t per_gate = c.prototypes.enabled ? 2 : 1;
    const std::int64_t gates = router_->gate_state().w.size(0);
    if (gated) {
      weights += roles * static_cast<double>(c.routing_width * (c.width + per_gate * gates));
    }
  }
  return 2 * weights + attention_flops_per_token(T);
}

std::int64_t AspaAttention::active_parameter_count() const {
  if (config_.routed_heads == 0) return parameter_count();
  const std::int64_t per_head =
      4 * config_.width * config_.head_width + (weights_.sink.defined() ? 1 : 0);
  return parameter_count() - (config_.routed_heads - k()) * per_head;
}

}  // namespace proteus
