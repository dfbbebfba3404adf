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

std::vector<std::int64_t> layers_of(const Transformer& model, std::int64_t wanted) {
  if (wanted >= model.layers()) {
    throw ConfigError(fmt::format("--layer: expected below {} (= layers of the checkpoint), got {}",
                                  model.layers(), wanted));
  }
  std::vector<std::int64_t> layers;
  for (std::int64_t l = 0; l < model.layers(); ++l) {
    const AspaAttention* layer = aspa_layer(model, l);
    if (layer && layer->config().routed_heads > 0 && (wanted < 0 || wanted == l)) {
      layers.push_back(l);
    }
  }
  if (layers.empty()) throw ConfigError("gates: this checkpoint has no routed heads there");
  return layers;
}

nlohmann::ordered_json gate_list(const Transformer& model,
                                 const std::vector<std::int64_t>& layers) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const std::int64_t l : layers) {
    const GateState gates = aspa_layer(model, l)->router().gate_state();
    const auto mass = gates.mass.to_vector();
    const auto N = gates.N.defined() ? gates.N.to_vector() : std::vector<double>();
    double sum = 0;
    for (const double n : N) sum += n;
    for (std::size_t g = 0; g < mass.size(); ++g) {
      nlohmann::ordered_json gate{{"layer", l},
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

GateEdit operate_on(const GatesOptions& o, AspaAttention& layer, std::uint64_t seed,
                    const EditHook& hook) {
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
  const Checkpoint saved = load_checkpoint(path);
  const SavedModel about = parse_model_json(saved.config, path);
  const auto model =
      make_model(about.options, arm_named(about.arm, "arm"), about.vocab, about.seed);
  restore_model(*model, saved.model, path);
  const auto layers = layers_of(*model, o.layer);
  nlohmann::ordered_json json{{"command", "gates"}, {"checkpoint", path}};
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
        operate_on(o, *aspa_layer(*model, o.layer), static_cast<std::uint64_t>(options.common.seed),
                   optimizer_hook(trainer.optimizer(), o.layer));
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
  json["gates"] = gate_list(*model, layers);
  if (options.output.json) {
    fmt::print("{}\n", json_text(json));
  } else {
    print_list(json["gates"]);
  }
  return 0;
}

}  // namespace proteus
