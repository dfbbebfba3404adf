#include "train/gates.h"

#include <fmt/format.h>

#include <map>
#include <nlohmann/json.hpp>

#include "tensor/error.h"
#include "train/checkpoint.h"
#include "train/tokenizer.h"
#include "train/trainer.h"

namespace proteus {
namespace {

constexpr std::uint64_t kSurgeryStream = std::uint64_t{5} << 40;
constexpr std::uint64_t kStreamsPerStep = 1 << 16;

// The full name of a parameter or buffer of a part; see HeadTable::name.
std::string full_name(const GatedPart& part, const std::string& name) {
  if (!name.starts_with("../")) return part.prefix() + name;
  return fmt::format("blocks.{}.{}", part.layer, name.substr(3));
}

double probe_loss(Transformer& model, const Batch& probe) {
  return evaluate(
             model, [&](std::int64_t) { return probe; }, 1)
      .loss;
}

/// The tables of one part as a checkpoint has them, checked against the part's own.
class SavedTables {
 public:
  SavedTables(const std::map<std::string, Tensor>& given, const GatedPart& part,
              const std::string& source)
      : given_(given), part_(part), source_(source) {}

  /// The first dimension of a tensor, −1 where it is missing.
  std::int64_t rows(const std::string& name) const {
    const auto found = given_.find(full_name(part_, name));
    return found == given_.end() || found->second.rank() == 0 ? -1 : found->second.size(0);
  }

  /// A copy of the tensor; `like` has its shape but for the number of rows. Undefined stays so.
  Tensor take(const std::string& name, const Tensor& like, std::int64_t rows) const {
    if (!like.defined()) return {};
    const std::string full = full_name(part_, name);
    const auto found = given_.find(full);
    if (found == given_.end()) throw FileError(source_ + ": \"" + full + "\" is missing");
    Shape shape = like.shape();
    shape[0] = rows;
    if (found->second.shape() != shape || found->second.dtype() != like.dtype()) {
      throw FileError(fmt::format("{}: \"{}\": expected {} {}, got {}", source_, full,
                                  name_of(like.dtype()), to_string(shape),
                                  describe(found->second)));
    }
    return found->second.clone();
  }

 private:
  const std::map<std::string, Tensor>& given_;
  const GatedPart& part_;
  const std::string& source_;
};

void adopt_tables(Gating& gating, const SavedTables& saved, const std::string& source) {
  RouterTables t = gating.router().tables();
  const std::int64_t G = saved.rows("router.w");
  const std::int64_t Hr = saved.rows("router.theta_q");
  if (G < 1 || Hr < 1 || (G == t.gates.w.size(0) && Hr == t.theta_q.numel())) return;
  const bool prototypes = t.gates.N.defined();
  t.gates.w = saved.take("router.w", t.gates.w, G);
  if (prototypes) {
    t.gates.p = saved.take("router.p", t.gates.p, G);
  } else {
    t.gates.p = Tensor::zeros({G, t.gates.p.size(1)}, t.gates.p.dtype());
  }
  t.gates.N = saved.take("router.N", t.gates.N, G);
  t.gates.P = saved.take("router.P", t.gates.P, G);
  t.gates.mass = saved.take("router.mass", t.gates.mass, G);
  t.gates.head_of_gate = saved.take("router.head_of_gate", t.gates.head_of_gate, G);
  t.gates.starving = saved.take("router.starving", t.gates.starving, G);
  t.theta_q = saved.take("router.theta_q", t.theta_q, Hr);
  t.theta_k = saved.take("router.theta_k", t.theta_k, Hr);
  t.ramp = saved.take("router.ramp", t.ramp, Hr);
  std::vector<Tensor> heads;
  for (const HeadTable& table : gating.tables()) {
    heads.push_back(saved.take(table.name, table.variable.value(), Hr));
  }
  try {
    gating.replace(t, heads);
  } catch (const ConfigError& error) {
    throw FileError(source + ": " + error.what());
  }
}

}  // namespace

EditHook optimizer_hook(Optimizer& optimizer, const GatedPart& part) {
  return [&optimizer, part](std::vector<RowEdit> edits) {
    for (RowEdit& edit : edits) edit.parameter = full_name(part, edit.parameter);
    optimizer.map_rows(edits);
  };
}

void restore_model(Transformer& model, const NamedTensors& tensors, const std::string& source) {
  const std::map<std::string, Tensor> given(tensors.begin(), tensors.end());
  for (const GatedPart& part : gated_parts(model)) {
    if (!part.own_gates()) continue;
    adopt_tables(part.gated->gating(), SavedTables(given, part, source), source);
  }
  restore_module(model, tensors, source);
}

void check_size(const SavedModel& saved, double held, const std::string& source) {
  // Surgery shrinks a model's routed heads and gates, and never to a sixteenth of the whole.
  constexpr double kMostShrinking = 16;
  constexpr double kSmall = 1 << 24;
  const double wanted = parameters_about(saved.options, arm_named(saved.arm, "arm"), saved.vocab);
  if (wanted <= kMostShrinking * held + kSmall) return;
  throw FileError(fmt::format(
      "{}: config.json describes a model of about {:.2g} parameters; the file holds {:.2g}", source,
      wanted, held));
}

std::unique_ptr<Transformer> saved_model(const SavedModel& saved, const NamedTensors& tensors,
                                         const std::string& source) {
  if (!saved.tokenizer.empty()) {
    const std::int64_t ids = Tokenizer::from_json(saved.tokenizer, source).vocab();
    if (ids > saved.vocab) {
      throw FileError(
          fmt::format("{}: config.json: expected a vocabulary of at least {} (= the tokenizer's), "
                      "got {}",
                      source, ids, saved.vocab));
    }
  }
  double held = 0;
  for (const auto& [name, tensor] : tensors) held += static_cast<double>(tensor.numel());
  check_size(saved, held, source);
  auto model = make_model(saved.options, arm_named(saved.arm, "arm"), saved.vocab, saved.seed);
  restore_model(*model, tensors, source);
  return model;
}

nlohmann::ordered_json edit_json(const GateEdit& edit) {
  nlohmann::ordered_json json{{"operation", edit.operation}};
  const auto number = [&](const char* name, std::int64_t value) {
    json[name] = value >= 0 ? nlohmann::ordered_json(value) : nlohmann::ordered_json(nullptr);
  };
  number("gate", edit.gate);
  number("other", edit.other);
  number("head", edit.head);
  return json;
}

nlohmann::ordered_json event_json(const GateEvent& e) {
  nlohmann::ordered_json json = edit_json(e.edit);
  json["layer"] = e.layer;
  json["part"] = e.part;
  json["why"] = e.why;
  json["loss_before"] = e.loss_before;
  json["loss_after"] = e.loss_after;
  return json;
}

std::vector<GateEvent> operate(const AspaOptions& o, std::int64_t step, std::uint64_t seed,
                               Transformer& model, Optimizer& optimizer, const Batch& probe) {
  const bool grow = o.add_heads > 0 && step == o.add_heads_at;
  const bool policy_due = o.gate_every > 0 && step % o.gate_every == 0;
  std::vector<GateEvent> events;
  if (!grow && !policy_due) return events;
  GatePolicy policy;
  policy.merge_above = o.gate_merge_above;
  policy.clone_above = o.gate_clone_above;
  policy.most_gates = o.most_gates;
  RngKey key{seed, kSurgeryStream + static_cast<std::uint64_t>(step) * kStreamsPerStep};
  for (const GatedPart& part : gated_parts(model)) {
    if (!part.own_gates()) continue;
    Gated& gated = *part.gated;
    const EditHook hook = optimizer_hook(optimizer, part);
    const auto record = [&](const std::string& why, const auto& edit) {
      const double before = probe_loss(model, probe);
      GateEdit done = edit();
      events.push_back(
          {step, part.layer, part.name, std::move(done), why, before, probe_loss(model, probe)});
    };
    for (std::int64_t i = 0; grow && part.name == "attention" && i < o.add_heads; ++i) {
      key.stream += 16;  // one per gate and projection of a head
      record("--add-heads",
             [&] { return add_head(gated, {.ramp_steps = o.head_ramp}, key, hook); });
    }
    if (!policy_due) continue;
    const auto proposal = propose(policy, gated);
    if (!proposal) continue;
    ++key.stream;
    record(proposal->why, [&] { return apply(policy, *proposal, gated, key, hook); });
  }
  return events;
}

}  // namespace proteus
