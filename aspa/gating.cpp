#include "aspa/gating.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "aspa/balance.h"
#include "aspa/controllers.h"
#include "aspa/selection.h"
#include "aspa/slider.h"
#include "autograd/checkpoint.h"
#include "autograd/elementwise.h"
#include "autograd/pack.h"
#include "autograd/tape.h"
#include "autograd/view.h"
#include "tensor/error.h"

namespace proteus {
namespace {

constexpr std::int64_t kRecentTokens = 64;   // offered to dead gates, per optimizer step
constexpr std::int64_t kSampledTokens = 32;  // whose scores reports look at
constexpr std::uint64_t kNoiseStream = std::uint64_t{1} << 40;  // of revived gates, per step

std::size_t index(Role role) { return static_cast<std::size_t>(role); }

// Up to `most` rows of x, evenly spread.
Tensor spread_rows(const Tensor& x, std::int64_t most) {
  const std::int64_t m = std::min(most, x.size(0));
  if (m == 0) return Tensor::empty({0, x.size(1)}, x.dtype(), x.device());
  const std::int64_t stride = x.size(0) / m;
  return x.slice(0, 0, m * stride).reshape({m, stride, x.size(1)}).select(1, 0).clone();
}

RoutedSample sample_of(const Tensor& projected, const Tensor& heads) {
  if (projected.size(0) == 0) return {};
  return {spread_rows(projected, kSampledTokens), spread_rows(heads, kSampledTokens)};
}

Tensor every_head(std::int64_t tokens, std::int64_t Hr, Device device) {
  return Tensor::arange(Hr, DType::i32, device).unsqueeze(0).expand({tokens, Hr}).contiguous();
}

}  // namespace

Gating::Gating(GatingConfig& config, Router& router, Salience* salience)
    : config_(config), router_(router), salience_(salience) {
  refresh();
}

Gating::Gating(GatingConfig& config, Gating& owner)
    : config_(config), router_(owner.router_), salience_(nullptr), owner_(&owner) {
  owner.followers_.push_back(this);
  refresh();
}

std::int64_t Gating::k() const {
  return slider::routed_heads(config_.alpha, router_.established(), router_.k());
}

void Gating::set_k(std::int64_t k) {
  if (k < 1 || k > router_.established()) {
    throw ConfigError(fmt::format("aspa: k: expected 1 to {} (= established routed heads), got {}",
                                  router_.established(), k));
  }
  router_.set_k(k);
  telemetry_.k = this->k();
}

RoleRouting Gating::route(Role role, const Variable& projected, std::int64_t B, std::int64_t T) {
  RoleRouting out{{}, projected, {}, ops::Slots::any};
  const Tensor& forced = forced_[index(role)];
  const auto decided = decide([&]() -> std::vector<Tensor> {
    if (!gated()) return {every_head(B * T, config_.routed_heads, router_.device()), {}};
    if (forced.defined() && !salience_) return {{}, {}};
    // Where nothing else makes the host wait for a selection, a NaN does not either: it stays one.
    const bool waits = !fills_slots() || projected.device() == kCpu;
    const Choice choice =
        choose(role, projected.value(), {T}, waits ? ops::NanRows::mark : ops::NanRows::take_first);
    return {choice.heads, choice.nearest};
  });
  if (!forced.defined() && fills_slots()) out.slots = ops::Slots::filled;
  if (forced.defined()) check_heads(role, forced, B * T, config_.routed_heads);
  out.heads = forced.defined() ? forced.to(router_.device()) : decided[0];
  if (gated() && salience_) out.salience = salience_of(projected, decided[1]);
  if (probing_) probe_[index(role)] = out.heads.to(kCpu);
  if (tally_) tally(role, out.heads);
  return out;
}

bool Gating::fills_slots() const {
  return !gated() || (!salience_ && config_.top_p >= 1 && !config_.leaky_selection &&
                      !router_.extra_heads().defined());
}

Gating::Choice Gating::choose(Role role, const Tensor& projected, const TokenTimes& times,
                              ops::NanRows nan_rows) const {
  Choice out;
  if (salience_) {
    auto scored = router_.logits_and_nearest(projected);
    out.z = std::move(scored.z);
    out.nearest = std::move(scored.nearest);
  } else {
    out.z = router_.logits(projected);
  }
  if (config_.leaky_selection) {
    out.heads = choose_by_head(out.z, projected.size(0) / times.T, k());
    return out;
  }
  const Tensor& theta = router_.theta(role, projected.device());
  Tensor count;
  if (config_.top_p < 1) {
    const std::int64_t least =
        slider::routed_heads(config_.alpha, router_.established(), config_.k_min);
    count = ops::nucleus_counts(out.z, config_.top_p, least, k(), competing(role, theta));
  }
  if (salience_) {
    const NoGradGuard no_grad;
    const Tensor scores = salience_of(Variable(projected), out.nearest).value();
    count = salience_->keep_counts(role, scores, times, config_.alpha, k(), count);
  }
  out.heads = ops::topk_heads(out.z, k(), theta, count, router_.extra_heads(), nan_rows);
  return out;
}

// A new head must not take a share of the mass before it takes a place.
Tensor Gating::competing(Role role, const Tensor& theta) const {
  const Tensor& extra = router_.extra_heads();
  if (!extra.defined()) return theta;
  const Tensor out = router_.theta(role).clone();
  for (std::int64_t h = 0; h < out.numel(); ++h) {
    if (extra.data<std::int32_t>()[h] != 0) {
      out.select(0, h).fill_(std::numeric_limits<double>::infinity());
    }
  }
  return out.to(theta.device());
}

Variable Gating::salience_of(const Variable& projected, const Tensor& nearest) const {
  return salience_->scores(projected, router_.gate_state().p, nearest);
}

Variable Gating::row_salience(const RoleRouting& routing, const PackedRows& rows) const {
  const Variable& salience = routing.salience;
  return reshape(gather_rows(reshape(salience, {salience.size(0), 1}), rows), {rows.rows()});
}

Variable Gating::open(const Variable& y, const Variable& z, const RoleRouting& routing,
                      const PackedRows& rows) const {
  if (!salience_) return z.defined() ? open_rows(y, z, 2 * config_.alpha, 1 - config_.alpha) : y;
  Variable gate = scale(sigmoid(row_salience(routing, rows)), 2);
  if (z.defined()) gate = mul(scale(sigmoid(z), 2), gate);
  return scale_rows(y, shift(scale(gate, config_.alpha), 1 - config_.alpha));
}

Variable Gating::key_bias(const Variable& z, const RoleRouting& routing,
                          const PackedRows& rows) const {
  if (!salience_) return z.defined() ? log_sigmoid(z, config_.alpha) : z;
  Variable bias = shift(log_sigmoid(row_salience(routing, rows)), std::log(2.0));
  if (z.defined()) bias = add(log_sigmoid(z), bias);
  return scale(bias, config_.alpha);
}

void Gating::collect(Role role, const RoleRouting& routing, const PackedRows& rows,
                     const Tensor& share) {
  if (config_.telemetry) samples_[index(role)] = sample_of(routing.projected.value(), rows.heads);
  sum_up(role, routing, rows, share);
}

void Gating::sum_up(Role role, const RoleRouting& routing, const PackedRows& rows,
                    const Tensor& share) {
  count(counts_[index(role)], rows);
  if (owner_) return owner_->sum_up(role, routing, rows, share);
  if (routing.salience.defined()) salience_->collect(role, routing.salience.value());
  if (!config_.prototypes.enabled) return;
  const Tensor& projected = routing.projected.value();
  const ops::GateStatistics sums = router_.statistics(projected, rows, share);
  if (!update_.weight_sum.defined()) {
    update_.weight_sum = sums.weight_sum;
    update_.weighted_sum = sums.weighted_sum;
  } else {
    update_.weight_sum.add_(sums.weight_sum);
    update_.weighted_sum.add_(sums.weighted_sum);
  }
  update_.recent = spread_rows(projected, kRecentTokens);
}

void Gating::count(Count& count, const PackedRows& rows) const {
  const std::int64_t B = rows.sequences();
  const std::int64_t Hr = config_.routed_heads;
  const auto bounds = [&](std::int64_t first, std::int64_t of_head) {
    return rows.offsets.slice(0, first, first + Hr * B).reshape({Hr, B}).select(1, of_head);
  };
  Tensor pass = Tensor::empty({2, Hr}, DType::i32, rows.offsets.device());
  pass.select(0, 0).copy_(bounds(0, 0));
  pass.select(0, 1).copy_(bounds(1, B - 1));
  count.heads.resize(static_cast<std::size_t>(Hr));
  count.passes.push_back(pass);
  count.kept += rows.kept;
  count.tokens += rows.tokens();
}

Gating::Collected Gating::take_collected() {
  return {std::exchange(counts_, {}), std::exchange(update_, {}), std::exchange(samples_, {})};
}

void Gating::put_collected(const Collected& collected) {
  counts_ = collected.counts;
  update_ = collected.update;
  samples_ = collected.samples;
}

std::optional<std::vector<double>> Gating::host_numbers() const {
  if (!fills_slots() || forced()) return std::nullopt;
  return std::vector{config_.alpha, static_cast<double>(k()),
                     static_cast<double>(router_.most_gates())};
}

void Gating::Count::add_passes() {
  for (const Tensor& pass : passes) {
    const Tensor host = pass.to(kCpu);
    const auto* begin = host.data<std::int32_t>();
    const std::int32_t* end = begin + heads.size();
    for (std::size_t h = 0; h < heads.size(); ++h) heads[h] += end[h] - begin[h];
  }
  passes.clear();
}

std::vector<double> Gating::Count::load() const {
  std::vector<double> load;
  for (const std::int64_t n : heads) {
    load.push_back(static_cast<double>(n) / static_cast<double>(tokens));
  }
  return load;
}

void Gating::after_step(double rate) {
  if (!in_step()) return;
  for (Count& count : counts_) count.add_passes();
  if (!owner_) learn(rate);
  report();
  counts_ = {};
  update_ = {};
  if (!owner_) control_density();
}

void Gating::learn(double rate) {
  update_thresholds(config_.balance, rate, {counts_[0].load(), counts_[1].load()},
                    router_.theta(Role::query), router_.theta(Role::key));
  if (salience_) salience_->after_step(rate);
  if (config_.prototypes.enabled) move_prototypes(rate);
  router_.count_step();
}

void Gating::move_prototypes(double rate) {
  const GateState gates = router_.gate_state();
  PrototypeConfig prototypes = config_.prototypes;  // they settle with the router, too
  if (config_.balance.follow_rate) prototypes.ema = 1 - (1 - prototypes.ema) * rate;
  update_prototypes(prototypes, gates, update_);
  telemetry_.dead_gates = static_cast<std::int64_t>(dead_gates(config_.prototypes, gates).size());
  telemetry_.revived = 0;
  if (config_.prototypes.revive) {
    const auto step = static_cast<std::uint64_t>(router_.steps() + 1);
    const RngKey noise{config_.seed, kNoiseStream * step};
    telemetry_.revived =
        static_cast<std::int64_t>(revive_gates(config_.prototypes, gates, update_, noise).size());
  }
  telemetry_.lambda = router_.lambda().value().item();
}

void Gating::report() {
  double heads = 0;
  double roles = 0;
  for (const Role role : {Role::query, Role::key}) {
    const Count& count = counts_[index(role)];
    if (count.tokens == 0) continue;
    RoleTelemetry& out = role == Role::query ? telemetry_.query : telemetry_.key;
    out = describe_load(count.load());
    out.kept = static_cast<double>(count.kept) / static_cast<double>(count.tokens);
    heads += out.heads;
    roles += 1;
  }
  telemetry_.steps = router_.steps();
  telemetry_.k = k();
  telemetry_.density = heads / roles / static_cast<double>(config_.routed_heads);
}

void Gating::control_density() {
  telemetry_.decision.reset();
  const DensityConfig& d = config_.density;
  if (d.target <= 0 || router_.steps() % d.every != 0) return;
  const std::int64_t before = router_.k();
  const std::int64_t after = controlled_k(d, telemetry_.density, before, router_.established());
  if (after == before) return;
  telemetry_.decision = {router_.steps(), telemetry_.density, before, after};
  set_k(after);
}

void Gating::add_table(HeadTable table) {
  if (owner_) owner_->add_table(table);
  tables_.push_back(std::move(table));
}

void Gating::replace(const RouterTables& router, const std::vector<Tensor>& tables) {
  router_.replace(router);
  for (std::size_t i = 0; i < tables_.size(); ++i) {
    tables_[i].variable.resize(tables[i].to(tables_[i].variable.device()));
  }
  restart();
  for (Gating* follower : followers_) follower->restart();
}

void Gating::restart() {
  config_.routed_heads = router_.theta(Role::query).numel();
  config_.k = std::min(config_.k, config_.routed_heads);  // the router keeps the k that counts
  counts_ = {};
  update_ = {};
  samples_ = {};
  probe_ = {};
  last_probe_ = {};
  refresh();
}

void Gating::refresh() {
  telemetry_.alpha = config_.alpha;
  telemetry_.k = k();
  telemetry_.density =
      static_cast<double>(telemetry_.k) / static_cast<double>(config_.routed_heads);
}

double Gating::prototype_share() const {
  ScoreParts sum;
  for (const RoutedSample& sample : samples_) {
    if (!sample.projected.defined()) continue;
    const ScoreParts parts = router_.score_parts(sample);
    sum.learned += parts.learned;
    sum.prototype += parts.prototype;
  }
  return sum.prototype_share();
}

void Gating::force(Role role, const Tensor& heads) { forced_[index(role)] = heads; }

void Gating::begin_tally() { tally_ = std::array<Count, kRoles>{}; }

void Gating::tally(Role role, const Tensor& heads) {
  Count& count = (*tally_)[index(role)];
  count.heads.resize(static_cast<std::size_t>(config_.routed_heads));
  count.tokens += heads.size(0);
  const Tensor host = heads.to(kCpu).contiguous();
  const auto* head = host.data<std::int32_t>();
  for (std::int64_t t = 0; t < host.size(0); ++t) {
    bool any = false;
    for (std::int64_t j = 0; j < host.size(1); ++j, ++head) {
      if (*head < 0) continue;
      ++count.heads[static_cast<std::size_t>(*head)];
      any = true;
    }
    count.kept += any;
  }
}

void Gating::end_tally() {
  const auto counted = std::exchange(tally_, std::nullopt);
  if (!counted || (*counted)[0].tokens == 0) return;
  LoadTally out;
  std::vector<double> both((*counted)[0].heads.size());
  for (const Role role : {Role::query, Role::key}) {
    const Count& count = (*counted)[index(role)];
    if (count.tokens == 0) continue;  // experts have one role
    const std::vector<double> load = count.load();
    for (std::size_t h = 0; h < both.size(); ++h) both[h] += load[h];
    RoleTelemetry& described = role == Role::query ? out.query : out.key;
    described = describe_load(load);
    described.kept = static_cast<double>(count.kept) / static_cast<double>(count.tokens);
  }
  out.both = describe_load(std::move(both));
  telemetry_.tally = std::move(out);
}

void Gating::begin_probe() {
  probing_ = true;
  probe_ = {};
}

void Gating::end_probe() {
  probing_ = false;
  const auto changed = [&](Role role, double before) {
    const Tensor& now = probe_[index(role)];
    const Tensor& last = last_probe_[index(role)];
    if (!now.defined() || !last.defined() || now.size(0) != last.size(0)) return before;
    return churn(last, now);
  };
  telemetry_.churn_query = changed(Role::query, telemetry_.churn_query);
  telemetry_.churn_key = changed(Role::key, telemetry_.churn_key);
  for (std::size_t r = 0; r < kRoles; ++r) {
    if (probe_[r].defined()) last_probe_[r] = std::move(probe_[r]);
  }
  probe_ = {};
}

}  // namespace proteus
