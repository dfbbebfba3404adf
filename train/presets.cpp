// Presets and arms. `tiny` is nanoGPT's CPU configuration, `baby` its character-level one, `gpt2`
// the smallest GPT-2 (124M parameters) with the training of nanoGPT's reproduction; `mqar` is the
// configuration of `recall`, `layer` that of `sweep`.
#include <fmt/format.h>

#include "nn/mlp.h"
#include "tensor/error.h"
#include "train/option_table.h"

namespace proteus {
namespace {

constexpr Arm kArms[] = {
    {.name = "dense"},
    {.name = "dense_gated", .output_gate = true},
    {.name = "dense_shift", .key_shift = true},
    {.name = "dense_shift_gated", .key_shift = true, .output_gate = true},
    {.name = "aspa", .aspa = true},
    {.name = "aspa_no_prototypes", .aspa = true, .no_prototypes = true},
    {.name = "aspa_frozen", .aspa = true, .frozen_router = true},
    {.name = "aspa_no_shift", .aspa = true, .no_key_shift = true},
    {.name = "aspa_shared", .aspa = true, .shared_only = true},
    {.name = "aspa_leak", .aspa = true, .leaky = true},
};

}  // namespace

std::span<const Arm> arms() { return kArms; }

const Arm& arm_named(std::string_view name, std::string_view option) {
  std::vector<std::string_view> names;
  for (const Arm& arm : kArms) {
    if (arm.name == name) return arm;
    names.push_back(arm.name);
  }
  throw ConfigError(
      fmt::format("{}: expected one of {}, got '{}'", option, detail::joined(names, ", "), name));
}

ExpertWidths expert_widths(const AspaOptions& aspa, const ModelOptions& model) {
  const std::int64_t usual =
      usual_mlp_width(model.mlp == "swiglu" ? MlpKind::swiglu : MlpKind::gelu, model.width);
  const std::int64_t hidden = model.mlp_width > 0 ? model.mlp_width : usual;
  ExpertWidths out;
  out.k = aspa.expert_k > 0 ? aspa.expert_k : aspa.k;
  out.width = aspa.expert_width > 0 ? aspa.expert_width : hidden / (2 * out.k);
  out.shared = hidden - out.k * out.width;
  return out;
}

AspaOptions aspa_options(const AspaOptions& options, const Arm& arm) {
  AspaOptions result = options;
  result.no_prototypes = result.no_prototypes || arm.no_prototypes;
  result.frozen_router = result.frozen_router || arm.frozen_router;
  result.no_key_shift = result.no_key_shift || arm.no_key_shift;
  if (arm.shared_only) result.routed_heads = 0;
  return result;
}

namespace detail {
namespace {

void set_baby(Options& o) {
  o.model.layers = 6;
  o.model.width = 384;
  o.model.context = 256;
  o.model.head_width = 64;
  o.model.dropout = 0.2;
  o.aspa.shared_window = 64;
  o.aspa.routed_heads = 16;
  o.aspa.k = 2;
  o.aspa.window = 128;
  o.training.batch = 64;
  o.training.steps = 5000;
  o.training.eval_every = 250;
}

void set_gpt2(Options& o) {
  o.data.tokenizer = "bpe";
  o.data.vocab_size = 50257;
  o.model.layers = 12;
  o.model.width = 768;
  o.model.context = 1024;
  o.model.head_width = 64;
  o.model.positions = "learned";
  o.model.bias = true;
  o.aspa.shared_window = 256;
  o.aspa.routed_heads = 16;
  o.aspa.k = 4;
  o.aspa.window = 256;
  o.training.batch = 12;
  o.training.grad_accum = 40;
  o.training.steps = 600'000;
  o.training.lr = 6e-4;
  o.training.min_lr = 6e-5;
  o.training.warmup = 2000;
  o.training.beta2 = 0.95;
  o.training.eval_every = 1000;
  o.training.eval_batches = 200;
}

void set_mqar(Options& o) {
  o.model.layers = 2;
  o.model.context = 128;
  o.aspa.shared_window = 16;
  o.aspa.routed_heads = 8;
  o.aspa.k = 2;
  o.aspa.window = 256;
  o.training.batch = 128;
  o.training.steps = 3000;
  o.training.min_lr = 0;
  o.training.warmup = 200;
  o.training.beta2 = 0.999;
  o.duel.arms = {"dense", "dense_shift", "aspa", "aspa_no_prototypes"};
  o.stream.rounds = 2;
  o.stream.pool = 0;
  o.stream.top_p = 1;
}

void set_layer(Options& o) {
  o.model.width = 512;
  o.model.head_width = 64;
  o.aspa.shared_window = 256;
  o.aspa.routed_heads = 32;
  o.aspa.k = 4;
  o.aspa.window = 256;
  o.aspa.gates_per_head = 1;
  o.training.batch = 1;
}

void set_stream(Options& o) {
  o.model.width = 512;
  o.model.heads = 8;
  o.model.head_width = 64;
  o.aspa.shared_window = 64;
  o.aspa.routed_heads = 8;
  o.aspa.k = 2;
  o.aspa.window = 128;
}

}  // namespace

std::string_view first_preset(std::string_view command) {
  if (command == "recall") return "mqar";
  if (command == "stream") return "stream";
  if (command == "sweep") return "layer";
  return "tiny";
}

void apply_preset(Options& options, std::string_view preset, Levels& levels) {
  if (preset == "baby") {
    set_baby(options);
  } else if (preset == "gpt2") {
    set_gpt2(options);
  } else if (preset == "mqar") {
    set_mqar(options);
  } else if (preset == "layer") {
    set_layer(options);
  } else if (preset == "stream") {
    set_stream(options);
  } else if (preset != "tiny") {
    throw ConfigError(fmt::format("--preset: expected tiny, baby or gpt2, got '{}'", preset));
  }
  options.duel.preset = preset;
  // A head width given by the preset yields to a number of heads given by the user.
  levels["head-width"] = kPresetLevel;
}

}  // namespace detail
}  // namespace proteus
