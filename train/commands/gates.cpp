// proteus gates: shows the gates of a checkpoint, or operates on them.
#include "train/gates.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "autograd/tape.h"
#include "tensor/error.h"
#include "train/checkpoint.h"
#include "train/commands.h"
#include "train/models.h"
#include "train/report.h"
#include "train/session.h"
#include "train/trainer.h"

namespace proteus {
namespace {

constexpr std::int64_t kProbeRows = 4;

std::vector<GatedPart> parts_of(const Transformer& model, const GatesOptions& o) {
  if (o.layer >= model.layers()) {
    throw ConfigError(fmt::format("--layer: expected below {} (= layers of the checkpoint), got {}",
                                  model.layers(), o.layer));
  }
  std::vector<GatedPart> parts;
  for (const GatedPart& part : gated_parts(model)) {
    if (part.name != o.part || !part.gated->gates() || (o.layer >= 0 && part.layer != o.layer)) {
      continue;
    }
    if (!part.own_gates()) {
      throw ConfigError(
          "--part: this checkpoint's experts share the gates of attention; use --part attention");
    }
    parts.push_back(part);
  }
  if (parts.empty()) {
    throw ConfigError(fmt::format("gates: this checkpoint has no {} there",
                                  o.part == "mlp" ? "experts" : "routed heads"));
  }
  return parts;
}

nlohmann::ordered_json gate_list(const std::vector<GatedPart>& parts) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const GatedPart& part : parts) {
    const GateState gates = part.gated->gating().router().gate_state();
    const auto mass = gates.mass.to_vector();
    const auto N = gates.N.defined() ? gates.N.to_vector() : std::vector<double>();
    double sum = 0;
    for (const double n : N) sum += n;
    for (std::size_t g = 0; g < mass.size(); ++g) {
      nlohmann::ordered_json gate{{"layer", part.layer},
                                  {"gate", g},
                                  {"head", gates.head_of_gate.data<std::int32_t>()[g]},
                                  {"mass", mass[g]}};
      gate["use"] = N.empty() || !(sum > 0)
                        ? nlohmann::ordered_json(nullptr)
                        : nlohmann::ordered_json(N[g] * static_cast<double>(N.size()) / sum);
      gate["starving"] = N.empty() ? 0 : gates.starving.data<std::int32_t>()[g];
      list.push_back(gate);
    }
  }
  return list;
}

void print_list(const nlohmann::ordered_json& list) {
  Table table({"layer", "gate", "head", "mass", "use", "starving"});
  for (const auto& g : list) {
    table.add_row({fmt::to_string(g["layer"].get<std::int64_t>()),
                   fmt::to_string(g["gate"].get<std::int64_t>()),
                   fmt::to_string(g["head"].get<std::int64_t>()), format_number(g["mass"], 4),
                   g["use"].is_null() ? "–" : format_number(g["use"], 3),
                   fmt::to_string(g["starving"].get<std::int64_t>())});
  }
  fmt::print("{}", table.text());
}

GateEdit operate_on(const GatesOptions& o, Gated& layer, std::uint64_t seed, const EditHook& hook) {
  const RngKey key{seed, 1};
  if (o.edit == "clone") return clone_gate(layer, o.gate, o.noise, key, hook);
  if (o.edit == "merge") return merge_gates(layer, o.gate, o.other, hook);
  if (o.edit == "prune") return prune_gate(layer, o.gate, hook);
  if (o.edit == "re-home") return rehome_gate(layer, o.gate, o.head, hook);
  if (o.edit == "add-head") return add_head(layer, {}, key, hook);
  return prune_head(layer, o.head, o.most_usage, hook);
}

/// Largest change of the logits on random ids, as a share of the largest logit.
double logit_change(const Tensor& before, const Tensor& after) {
  const auto a = before.to_vector();
  const auto b = after.to_vector();
  double change = 0;
  double size = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    change = std::max(change, std::abs(b[i] - a[i]));
    size = std::max(size, std::abs(a[i]));
  }
  return size > 0 ? change / size : change;
}

}  // namespace

int run_gates(const Options& options) {
  const GatesOptions& o = options.gates;
  const std::string& path = options.checkpoint.checkpoint;
  const Checkpoint saved =
      load_checkpoint(path, o.edit.empty() ? CheckpointPart::model : CheckpointPart::all);
  const SavedModel about = parse_model_json(saved.config, path);
  const auto model = saved_model(about, saved.model, path);
  const auto parts = parts_of(*model, o);
  nlohmann::ordered_json json{{"command", "gates"}, {"checkpoint", path}, {"part", o.part}};
  if (!o.edit.empty()) {
    if (o.layer < 0) throw ConfigError("--layer: expected the layer to operate on, got nothing");
    Trainer trainer(*model, trainer_config(about.options, about.seed), {});
    trainer.restore(saved.optimizer, saved.state, path);
    model->set_training(false);
    const std::int64_t T = std::min<std::int64_t>(about.options.model.context, 256);
    const Tensor ids =
        Tensor::rand({kProbeRows, T}, {1, 1}, DType::f64, 0, static_cast<double>(about.vocab))
            .to(DType::i32);
    const Tensor before = model->logits(ids);
    const GateEdit edit =
        operate_on(o, *parts[0].gated, static_cast<std::uint64_t>(options.common.seed),
                   optimizer_hook(trainer.optimizer(), parts[0]));
    const double change = logit_change(before, model->logits(ids));
    const std::string target = o.save.empty() ? path : o.save;
    save_checkpoint(
        target, {saved.config, saved.state, module_tensors(*model), trainer.optimizer_tensors()});
    json["edit"] = edit_json(edit);
    json["edit"]["layer"] = o.layer;
    json["edit"]["logit_change"] = change;
    json["saved"] = target;
    if (!options.output.json) {
      fmt::print(
          "{}: layer {}, gate {}, head {}: logits changed by {:.2g} of the largest\n"
          "Written to {}\n",
          edit.operation, o.layer, edit.gate, edit.head, change, target);
    }
  }
  json["gates"] = gate_list(parts);
  if (options.output.json) {
    fmt::print("{}\n", json_text(json));
  } else {
    print_list(json["gates"]);
  }
  return 0;
}

}  // namespace proteus
