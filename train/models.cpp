#include "train/models.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>

#include "aspa/slider.h"
#include "autograd/tape.h"
#include "tensor/error.h"
#include "train/json_file.h"

namespace proteus {
namespace {

using nlohmann::json;

DenseAttentionConfig dense_config(const Options& o, const Arm& arm) {
  DenseAttentionConfig c;
  c.width = o.model.width;
  c.heads = o.model.heads;
  c.head_width = o.model.head_width;
  c.key_shift = arm.key_shift;
  c.output_gate = arm.output_gate;
  c.rope = o.model.positions == "rope";
  c.bias = o.model.bias;
  c.dropout = o.model.dropout;
  return c;
}

// What gates of attention and of experts have in common.
void set_gating(GatingConfig& c, const Options& options, const AspaOptions& o, std::uint64_t seed) {
  c.width = options.model.width;
  c.gates_per_head = o.gates_per_head;
  c.routing_width = o.routing_width;
  c.alpha = o.alpha;
  if (o.sparse_from > 0) {
    c.alpha *= slider::alpha_for_length(options.model.context, o.dense_until, o.sparse_from);
  }
  c.lambda = o.lambda;
  c.frozen_router = o.frozen_router;
  c.balance.enabled = !o.no_balance;
  c.balance.u = o.balance_rate;
  c.balance.follow_rate = !o.balance_constant;
  c.balance.max_role_gap = o.role_gap;
  c.prototypes.enabled = !o.no_prototypes;
  c.prototypes.ema = o.prototype_ema;
  c.prototypes.dead_share = o.dead_share;
  c.prototypes.dead_steps = o.dead_steps;
  c.prototypes.revive = o.gate_every == 0;  // the policy prunes dead gates instead
  c.seed = seed;
}

AspaConfig aspa_config(const Options& options, const Arm& arm, std::uint64_t seed) {
  const AspaOptions o = aspa_options(options.aspa, arm);
  AspaConfig c;
  set_gating(c, options, o, seed);
  c.head_width = options.model.head_width;
  c.shared_heads = o.shared_heads;
  c.shared_window = o.shared_window;
  c.anchors = o.anchors;
  c.routed_heads = o.routed_heads;
  c.k = o.k;
  c.top_p = o.head_top_p;
  c.k_min = o.min_heads;
  c.density.target = o.density;
  c.density.tolerance = o.density_tolerance;
  c.density.k_min = o.min_heads;
  c.density.k_max = o.max_heads;
  c.density.every = o.density_every;
  c.salience.keep = o.token_keep;
  c.salience.guard = std::max(o.token_guard, o.token_keep_min);
  c.window = o.window;
  c.bank.slots = o.bank_slots;
  c.bank.stride = o.bank_stride;
  c.bank.delta = o.bank_delta;
  c.bank.delta_v = o.bank_delta_v;
  c.bank.eviction = o.bank_eviction == "fifo"     ? BankEviction::fifo
                    : o.bank_eviction == "random" ? BankEviction::random
                                                  : BankEviction::score;
  c.key_shift = !o.no_key_shift;
  c.shared_gate = !o.no_shared_gate;
  c.sink = !o.no_sink;
  c.query_gate = !o.no_query_gate;
  c.key_bias = !o.no_key_bias;
  c.bias = options.model.bias;
  c.shared_rope = options.model.positions == "rope";
  c.routed_rope = o.rope == "none" || !c.shared_rope ? RopeSpan::none
                  : o.rope == "full"                 ? RopeSpan::full
                                                     : RopeSpan::half;
  c.leaky_selection = arm.leaky;
  c.dropout = options.model.dropout;
  return c;
}

// Token salience and the density controller are attention's; who shares its gates shares its k.
GatedMlpConfig expert_config(const Options& options, const Arm& arm, std::uint64_t seed) {
  const AspaOptions o = aspa_options(options.aspa, arm);
  const ExpertWidths widths = expert_widths(o, options.model);
  GatedMlpConfig c;
  set_gating(c, options, o, seed);
  c.routed_heads = o.experts;
  c.k = widths.k;
  if (o.expert_router == "attention") {
    c.top_p = o.head_top_p;
    c.k_min = o.min_heads;
  }
  c.kind = options.model.mlp == "swiglu" ? MlpKind::swiglu : MlpKind::gelu;
  c.expert_width = widths.width;
  c.shared_width = widths.shared;
  return c;
}

std::uint64_t layer_seed(std::uint64_t seed, int layer) {
  return seed + static_cast<std::uint64_t>(layer);
}

}  // namespace

std::unique_ptr<Attention> make_attention(const Options& options, const Arm& arm,
                                          const AttentionSite& site, std::uint64_t seed) {
  if (arm.aspa) {
    return std::make_unique<AspaAttention>(aspa_config(options, arm, layer_seed(seed, site.layer)),
                                           site.output_std, site.init, site.generator);
  }
  return std::make_unique<DenseAttention>(dense_config(options, arm), site.output_std, site.init,
                                          site.generator);
}

std::string attention_path(const Options& options, const Arm& arm) {
  if (!arm.aspa) return "dense";
  const AspaConfig c = aspa_config(options, arm, 0);
  if (c.routed_heads == 0) return "windows of shared heads";
  if (c.alpha == 0) return "dense (alpha 0)";
  if (c.selects_everything(options.model.context)) return "dense (selects everything)";
  return fmt::format("packed rows (alpha {:g})", c.alpha);
}

std::unique_ptr<Transformer> make_model(const Options& options, const Arm& arm, std::int64_t vocab,
                                        std::uint64_t seed) {
  const ModelOptions& o = options.model;
  TransformerConfig config;
  config.vocab = vocab;
  config.context = o.context;
  config.layers = o.layers;
  config.width = o.width;
  config.mlp = o.mlp == "swiglu" ? MlpKind::swiglu : MlpKind::gelu;
  config.mlp_width = o.mlp_width;
  config.norm = o.norm == "rms" ? NormKind::rms : NormKind::layer;
  config.bias = o.bias;
  config.learned_positions = o.positions == "learned";
  config.dropout = o.dropout;
  config.recompute = o.recompute;
  config.compute = options.common.dtype == "bf16" ? DType::bf16 : DType::f32;
  config.seed = seed;
  const auto attention = [&](const AttentionSite& site) {
    return make_attention(options, arm, site, seed);
  };
  if (!arm.aspa || options.aspa.experts == 0) {
    return std::make_unique<Transformer>(config, attention);
  }
  return std::make_unique<Transformer>(config, attention, [&](const FeedForwardSite& site) {
    const bool shares = options.aspa.expert_router == "attention";
    return std::make_unique<GatedMlp>(
        expert_config(options, arm, layer_seed(seed, site.layer)), site.output_std, site.init,
        shares ? dynamic_cast<AspaAttention&>(site.attention).gates() : nullptr);
  });
}

double parameters_about(const Options& options, const Arm& arm, std::int64_t vocab) {
  const auto real = [](std::int64_t n) { return static_cast<double>(n); };
  const ModelOptions& m = options.model;
  const double C = real(m.width);
  const double D = real(m.head_width);
  constexpr double kHeadMatrices = 4;  // Q, K, V, O
  constexpr double kMlpMatrices = 8;   // two of width 4C
  double layer = kMlpMatrices * C * C;
  if (arm.aspa) {
    const AspaOptions o = aspa_options(options.aspa, arm);
    const double gates = real(o.gates_per_head) * real(o.routing_width) * 3;  // w, p, P
    layer += real(o.shared_heads + o.routed_heads) * kHeadMatrices * C * D;
    layer += real(o.routed_heads) * gates;
    if (o.experts > 0) {
      layer += real(o.experts) * (gates + 2 * C * real(expert_widths(o, m).width));
    }
  } else {
    layer += real(m.heads) * kHeadMatrices * C * D;
  }
  const double positions = m.positions == "learned" ? real(m.context) * C : 0;
  return real(vocab) * C + positions + real(m.layers) * layer;
}

bool routes(std::string_view parameter) {
  const auto part_of = [&](std::string_view module) {
    return parameter.find(module) != std::string_view::npos;
  };
  return part_of(".router.") || part_of(".salience.") || parameter.ends_with(".sink") ||
         parameter.ends_with(".mu") || parameter.ends_with(".shared_gate.weight");
}

AspaAttention* aspa_layer(const Transformer& model, std::int64_t layer) {
  return dynamic_cast<AspaAttention*>(&model.attention(layer));
}

std::string GatedPart::prefix() const {
  return "blocks." + std::to_string(layer) + (name == "attention" ? ".attn." : ".mlp.");
}

std::vector<GatedPart> gated_parts(const Transformer& model) {
  std::vector<GatedPart> parts;
  for (std::int64_t l = 0; l < model.layers(); ++l) {
    if (auto* gated = dynamic_cast<Gated*>(&model.attention(l))) {
      parts.push_back({l, "attention", gated});
    }
    if (auto* gated = dynamic_cast<Gated*>(&model.feed_forward(l))) {
      parts.push_back({l, "mlp", gated});
    }
  }
  return parts;
}

namespace {

void for_each_gating(const Transformer& model, void (Gating::*change)()) {
  for (const GatedPart& part : gated_parts(model)) {
    if (Gating* gates = part.gated->gates()) (gates->*change)();
  }
}

}  // namespace

RoutingSummary routing_summary(const Transformer& model) {
  RoutingSummary sum;
  double layers = 0;
  double churn = 0;
  double probes = 0;
  for (const GatedPart& part : gated_parts(model)) {
    if (!part.gated->gates()) continue;
    const AspaTelemetry& t = part.gated->gates()->telemetry();
    sum.present = true;
    for (const RoleTelemetry* role : {&t.query, &t.key}) {
      if (role->load.empty()) continue;
      sum.max_vio = std::max(sum.max_vio, role->max_vio);
      sum.entropy = std::min(sum.entropy, role->entropy);
    }
    if (t.tally) {
      sum.eval_max_vio = std::max({sum.eval_max_vio, t.tally->query.max_vio, t.tally->key.max_vio});
      sum.eval_max_vio_both = std::max(sum.eval_max_vio_both, t.tally->both.max_vio);
    }
    sum.dead_gates += t.dead_gates;
    for (const double role : {t.churn_query, t.churn_key}) {
      if (role < 0) continue;
      churn += role;
      probes += 1;
    }
    if (part.name != "attention") continue;
    sum.alpha = part.gated->alpha();
    sum.density += t.density;
    layers += 1;
  }
  if (layers > 0) sum.density /= layers;
  if (probes > 0) sum.churn = churn / probes;
  return sum;
}

void probe_routing(Transformer& model, const Tensor& tokens) {
  const bool training = model.training();
  model.set_training(false);
  for_each_gating(model, &Gating::begin_probe);
  {
    const NoGradGuard no_grad;
    model.hidden(tokens);
  }
  for_each_gating(model, &Gating::end_probe);
  model.set_training(training);
}

void set_alpha(const Transformer& model, double alpha) {
  const auto parts = gated_parts(model);
  if (parts.empty()) {
    throw ConfigError("--alpha: expected a model with ASPA layers, got a dense one");
  }
  for (const GatedPart& part : parts) part.gated->set_alpha(alpha);
}

void begin_tally(const Transformer& model) { for_each_gating(model, &Gating::begin_tally); }

void end_tally(const Transformer& model) { for_each_gating(model, &Gating::end_tally); }

std::string model_json(const SavedModel& saved) {
  json out;
  out["arm"] = saved.arm;
  out["vocab"] = saved.vocab;
  out["seed"] = saved.seed;
  out["tokenizer"] = saved.tokenizer.empty() ? json(nullptr) : json::parse(saved.tokenizer);
  out["options"] = config_text(saved.options);
  out["command"] = saved.options.command;
  return out.dump(2);
}

SavedModel parse_model_json(const std::string& text, const std::string& source) {
  const json in = parse_json_file(text, source + ": config.json");
  const auto is_text = [&](const char* key) { return in.contains(key) && in[key].is_string(); };
  if (!in.is_object() || !is_text("arm") || !is_text("options") || !is_text("command") ||
      !in.contains("vocab") || !in["vocab"].is_number_unsigned() || !in.contains("seed") ||
      !in["seed"].is_number_unsigned() || !in.contains("tokenizer")) {
    throw FileError(source +
                    ": config.json: expected arm, vocab, seed, tokenizer, command and options; the "
                    "checkpoint is from another version or damaged");
  }
  SavedModel saved;
  saved.arm = in["arm"];
  constexpr std::uint64_t kMostIds = std::numeric_limits<std::int32_t>::max();
  if (in["vocab"].get<std::uint64_t>() > kMostIds) {
    throw FileError(fmt::format("{}: config.json: vocab: expected at most {}, got {}", source,
                                kMostIds, in["vocab"].get<std::uint64_t>()));
  }
  saved.vocab = in["vocab"];
  saved.seed = in["seed"];
  if (!in["tokenizer"].is_null()) saved.tokenizer = in["tokenizer"].dump();
  try {
    saved.options = options_from_text(in["command"], in["options"], source);
    arm_named(saved.arm, "arm");
  } catch (const ConfigError& error) {
    throw FileError(source + ": config.json: " + error.what());
  }
  return saved;
}

}  // namespace proteus
