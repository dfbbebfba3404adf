#include "aspa/surgery.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "autograd/tape.h"
#include "nn/init.h"
#include "tensor/error.h"

namespace proteus {
namespace {

void refuse(const char* operation, const std::string& why) {
  throw ConfigError(fmt::format("{}: {}", operation, why));
}

/// A layer's tables while they are edited; commit() tells the hook, then the layer.
class Edit {
 public:
  Edit(Gated& layer, const char* operation)
      : gating_(layer.gating()), operation_(operation), tables_(gating_.router().tables()) {
    if (gating_.follows()) {
      refuse(operation, "these gates are those of the block's attention; operate on them there");
    }
    if (!gating_.router().gate_weight().requires_grad()) {
      refuse(operation, "the router is frozen; its gates stay as they are");
    }
    if (gating_.in_step()) {
      refuse(operation,
             "a training step is under way; operate after the optimizer step (after_step())");
    }
    for (Tensor* t : {&tables_.gates.w, &tables_.gates.p, &tables_.gates.N, &tables_.gates.P,
                      &tables_.gates.mass, &tables_.gates.head_of_gate, &tables_.gates.starving,
                      &tables_.theta_q, &tables_.theta_k, &tables_.ramp}) {
      if (t->defined()) *t = t->device() == kCpu ? t->clone() : t->to(kCpu);
    }
    for (const HeadTable& table : gating_.tables()) heads_.push_back(table.variable.value());
  }

  std::int64_t gates() const { return tables_.gates.w.size(0); }
  std::int64_t heads() const { return tables_.theta_q.numel(); }
  RouterTables& tables() { return tables_; }
  std::int32_t& head_of(std::int64_t gate) {
    return tables_.gates.head_of_gate.data<std::int32_t>()[gate];
  }
  std::int64_t gates_of(std::int64_t head) {
    std::int64_t n = 0;
    for (std::int64_t g = 0; g < gates(); ++g) n += head_of(g) == head ? 1 : 0;
    return n;
  }

  void check_gate(std::int64_t gate) {
    if (gate < 0 || gate >= gates()) {
      refuse(operation_, fmt::format("expected a gate in [0, {}), got {}", gates(), gate));
    }
  }
  void check_head(std::int64_t head) {
    if (head < 0 || head >= heads()) {
      refuse(operation_, fmt::format("expected a head in [0, {}), got {}", heads(), head));
    }
  }
  void check_not_last(std::int64_t gate) {
    if (gates_of(head_of(gate)) == 1) {
      refuse(operation_, fmt::format("gate {} is the only gate of head {}; a head keeps one", gate,
                                     head_of(gate)));
    }
  }

  /// Gate rows by `rows`; their moments by `moments`.
  void map_gates(const RowMap& rows, RowMap moments) {
    GateState& g = tables_.gates;
    for (Tensor* t : {&g.w, &g.p, &g.N, &g.P, &g.mass, &g.head_of_gate, &g.starving}) {
      if (t->defined()) *t = map_rows(*t, rows);
    }
    edits_.push_back({"router.w", std::move(moments)});
  }
  /// Head rows; a row without terms is a new head.
  void map_heads(const RowMap& rows) {
    for (std::size_t i = 0; i < heads_.size(); ++i) {
      heads_[i] = map_rows(heads_[i].to(kCpu), rows);
      edits_.push_back({gating_.tables()[i].name, rows});
    }
    for (Tensor* t : {&tables_.theta_q, &tables_.theta_k, &tables_.ramp}) {
      if (t->defined()) *t = map_rows(*t, rows);
    }
  }

  /// Draws the rows of a new head in the tables that do not begin with zeros.
  void draw_head(std::int64_t head, RngKey key) {
    for (std::size_t i = 0; i < heads_.size(); ++i) {
      const double std = gating_.tables()[i].fresh_std;
      if (std <= 0) continue;
      ++key.stream;
      const Tensor row = heads_[i].select(0, head);
      row.copy_(Tensor::randn(row.shape(), key, row.dtype(), 0, std));
    }
  }

  /// mass of a head's gates → its share of their sum.
  void normalise_masses(std::int64_t head) {
    const Tensor& mass = tables_.gates.mass;
    const auto values = mass.to_vector();
    double sum = 0;
    for (std::int64_t g = 0; g < gates(); ++g) {
      if (head_of(g) == head) sum += values[static_cast<std::size_t>(g)];
    }
    for (std::int64_t g = 0; g < gates(); ++g) {
      if (head_of(g) == head) mass.select(0, g).fill_(values[static_cast<std::size_t>(g)] / sum);
    }
  }

  void scale_rows(std::int64_t gate, double factor) {
    for (const Tensor& t : {tables_.gates.mass, tables_.gates.N, tables_.gates.P}) {
      if (!t.defined()) continue;
      const Tensor row = t.select(0, gate);
      row.add_(row.clone(), factor - 1);
    }
  }

  /// Adds noise to w of a gate, relative to its root mean square.
  void disturb(std::int64_t gate, double noise, RngKey key) {
    if (noise <= 0) return;
    const Tensor row = tables_.gates.w.select(0, gate);
    double square = 0;
    for (const double v : row.to_vector()) square += v * v;
    const double std = noise * std::sqrt(square / static_cast<double>(row.numel()));
    row.add_(Tensor::randn(row.shape(), key, row.dtype(), 0, std));
  }

  void commit(const EditHook& hook) {
    if (hook && !edits_.empty()) hook(edits_);
    gating_.replace(tables_, heads_);
  }

 private:
  Gating& gating_;
  const char* operation_;
  RouterTables tables_;
  std::vector<Tensor> heads_;
  std::vector<RowEdit> edits_;
};

RowMap without(std::int64_t rows, const std::function<bool(std::int64_t)>& dropped) {
  RowMap map;
  for (std::int64_t r = 0; r < rows; ++r) {
    if (!dropped(r)) map.push_back({{r, 1.0}});
  }
  return map;
}

}  // namespace

GateEdit clone_gate(Gated& layer, std::int64_t gate, double noise, RngKey key,
                    const EditHook& hook) {
  Edit edit(layer, "clone gate");
  edit.check_gate(gate);
  const std::int64_t fresh = edit.gates();
  RowMap rows = identity_rows(fresh);
  rows.push_back({{gate, 1.0}});
  RowMap moments = rows;
  moments[static_cast<std::size_t>(gate)] = moments.back() = {{gate, 0.5}};
  edit.map_gates(rows, std::move(moments));
  edit.scale_rows(gate, 0.5);
  edit.scale_rows(fresh, 0.5);
  edit.disturb(fresh, noise, key);
  const std::int64_t head = edit.head_of(gate);
  edit.commit(hook);
  return {"clone", gate, fresh, head};
}

GateEdit merge_gates(Gated& layer, std::int64_t gate, std::int64_t other, const EditHook& hook) {
  Edit edit(layer, "merge gates");
  edit.check_gate(gate);
  edit.check_gate(other);
  if (gate == other || edit.head_of(gate) != edit.head_of(other)) {
    refuse("merge gates",
           fmt::format("expected two gates of one head, got {} of head {} and {} of head {}", gate,
                       edit.head_of(gate), other, edit.head_of(other)));
  }
  GateState& g = edit.tables().gates;
  const double a = g.mass.select(0, gate).item();
  const double b = g.mass.select(0, other).item();
  RowMap mean = identity_rows(edit.gates());
  mean[static_cast<std::size_t>(gate)] = {{gate, a / (a + b)}, {other, b / (a + b)}};
  RowMap sum = identity_rows(edit.gates());
  sum[static_cast<std::size_t>(gate)] = {{gate, 1.0}, {other, 1.0}};
  g.w = map_rows(g.w, mean);
  g.p = map_rows(g.p, mean);
  for (Tensor* t : {&g.mass, &g.N, &g.P}) {
    if (t->defined()) *t = map_rows(*t, sum);
  }
  const Tensor p = g.p.select(0, gate);
  double square = 0;
  for (const double v : p.to_vector()) square += v * v;
  if (square > 0) p.add_(p.clone(), 1 / std::sqrt(square) - 1);
  if (g.starving.defined()) g.starving.select(0, gate).fill_(0);
  RowMap moments = sum;
  moments.erase(moments.begin() + other);
  edit.map_gates(without(edit.gates(), [&](std::int64_t r) { return r == other; }),
                 std::move(moments));
  const std::int64_t head = edit.head_of(gate - (other < gate ? 1 : 0));
  edit.commit(hook);
  return {"merge", gate, other, head};
}

GateEdit prune_gate(Gated& layer, std::int64_t gate, const EditHook& hook) {
  Edit edit(layer, "prune gate");
  edit.check_gate(gate);
  edit.check_not_last(gate);
  const std::int64_t head = edit.head_of(gate);
  const RowMap rows = without(edit.gates(), [&](std::int64_t r) { return r == gate; });
  edit.map_gates(rows, rows);
  edit.normalise_masses(head);
  edit.commit(hook);
  return {"prune", gate, -1, head};
}

GateEdit rehome_gate(Gated& layer, std::int64_t gate, std::int64_t head, const EditHook& hook) {
  Edit edit(layer, "re-home gate");
  edit.check_gate(gate);
  edit.check_head(head);
  const std::int64_t before = edit.head_of(gate);
  if (before == head)
    refuse("re-home gate", fmt::format("gate {} opens head {} already", gate, head));
  edit.check_not_last(gate);
  // Beside masses that sum to 1, a mass of 1/(n − 1) becomes 1/n of the whole.
  edit.tables().gates.mass.select(0, gate).fill_(1 / static_cast<double>(edit.gates_of(head)));
  edit.head_of(gate) = static_cast<std::int32_t>(head);
  edit.normalise_masses(before);
  edit.normalise_masses(head);
  edit.commit(hook);
  return {"re-home", gate, -1, head};
}

GateEdit add_head(Gated& layer, const NewHead& config, RngKey key, const EditHook& hook) {
  Edit edit(layer, "add head");
  const std::int64_t count =
      config.gates > 0 ? config.gates : layer.gating().config().gates_per_head;
  if (config.ramp_steps < 0) {
    refuse("add head", fmt::format("ramp_steps: expected at least 0, got {}", config.ramp_steps));
  }
  const std::int64_t head = edit.heads();
  const std::int64_t before = edit.gates();
  // Copies of the busiest gates, which lie where the tokens are.
  std::vector<std::int64_t> busiest(static_cast<std::size_t>(before));
  std::iota(busiest.begin(), busiest.end(), 0);
  const Tensor& N = edit.tables().gates.N;
  const auto use = (N.defined() ? N : edit.tables().gates.mass).to_vector();
  std::stable_sort(busiest.begin(), busiest.end(), [&](std::int64_t a, std::int64_t b) {
    return use[static_cast<std::size_t>(a)] > use[static_cast<std::size_t>(b)];
  });
  RowMap rows = identity_rows(before);
  RowMap moments = rows;
  for (std::int64_t i = 0; i < count; ++i) {
    rows.push_back({{busiest[static_cast<std::size_t>(i % before)], 1.0}});
    moments.emplace_back();
  }
  edit.map_gates(rows, std::move(moments));
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t gate = before + i;
    edit.head_of(gate) = static_cast<std::int32_t>(head);
    edit.tables().gates.mass.select(0, gate).fill_(1 / static_cast<double>(count));
    ++key.stream;
    edit.disturb(gate, config.noise, key);
  }
  std::vector<std::pair<Tensor*, double>> thresholds;  // a new head gets the mean of each role's
  for (Tensor* theta : {&edit.tables().theta_q, &edit.tables().theta_k}) {
    if (!theta->defined()) continue;
    const auto values = theta->to_vector();
    thresholds.emplace_back(theta, std::accumulate(values.begin(), values.end(), 0.0) /
                                       static_cast<double>(values.size()));
  }
  RowMap heads = identity_rows(head);
  heads.emplace_back();
  edit.map_heads(heads);
  for (const auto& [theta, mean] : thresholds) theta->select(0, head).fill_(mean);
  edit.tables().ramp.select(0, head).fill_(static_cast<double>(config.ramp_steps));
  edit.draw_head(head, key);
  edit.commit(hook);
  return {"add-head", -1, -1, head};
}

GateEdit prune_head(Gated& layer, std::int64_t head, double most_usage, const EditHook& hook) {
  Edit edit(layer, "prune head");
  edit.check_head(head);
  const auto usage = head_usage(layer);
  if (usage.empty()) {
    refuse("prune head", "how much the heads are used is not known before a training step");
  }
  const double use = usage[static_cast<std::size_t>(head)];
  if (!(use <= most_usage)) {
    refuse("prune head", fmt::format("head {} is used {:.3f} times as much as the mean head, more "
                                     "than {:.3f}; only heads under that bound are pruned",
                                     head, use, most_usage));
  }
  const bool ramping = edit.tables().ramp.data<std::int32_t>()[head] > 0;
  const Router& router = layer.gating().router();
  if (router.established() - (ramping ? 0 : 1) < router.k()) {
    refuse("prune head", fmt::format("a token enters k = {} heads and there are {}", router.k(),
                                     router.established()));
  }
  const RowMap gates =
      without(edit.gates(), [&](std::int64_t g) { return edit.head_of(g) == head; });
  edit.map_gates(gates, gates);
  for (std::int64_t g = 0; g < edit.gates(); ++g) {
    if (edit.head_of(g) > head) --edit.head_of(g);
  }
  edit.map_heads(without(edit.heads(), [&](std::int64_t h) { return h == head; }));
  edit.commit(hook);
  return {"prune-head", -1, -1, head};
}

std::vector<double> head_usage(const Gated& layer) {
  const Gating& gating = layer.gating();
  const GateState gates = gating.router().gate_state();
  std::vector<double> use(static_cast<std::size_t>(gating.config().routed_heads));
  if (gates.N.defined()) {
    const auto N = gates.N.to_vector();
    for (std::size_t g = 0; g < N.size(); ++g) {
      use[static_cast<std::size_t>(gates.head_of_gate.data<std::int32_t>()[g])] += N[g];
    }
  } else {
    for (const RoleTelemetry* role : {&gating.telemetry().query, &gating.telemetry().key}) {
      if (role->load.size() != use.size()) continue;
      for (std::size_t h = 0; h < use.size(); ++h) use[h] += role->load[h];
    }
  }
  const double sum = std::accumulate(use.begin(), use.end(), 0.0);
  if (!(sum > 0)) return {};
  for (double& u : use) u *= static_cast<double>(use.size()) / sum;
  return use;
}

double output_change(Gated& layer, const Tensor& x, const std::function<void()>& edit) {
  const NoGradGuard no_grad;
  const bool training = layer.module().training();
  layer.module().set_training(false);
  const auto before = layer.forward(Variable(x)).value().to_vector();
  edit();
  const auto after = layer.forward(Variable(x)).value().to_vector();
  layer.module().set_training(training);
  double change = 0;
  double size = 0;
  for (std::size_t i = 0; i < before.size(); ++i) {
    change = std::max(change, std::abs(after[i] - before[i]));
    size = std::max(size, std::abs(before[i]));
  }
  return size > 0 ? change / size : change;
}

}  // namespace proteus
