#include "train/models.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "aspa/slider.h"
#include "autograd/tape.h"
#include "tensor/error.h"

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
  c.dropout = o.model.dropout;
  return c;
}

AspaConfig aspa_config(const Options& options, const Arm& arm, std::uint64_t seed) {
  const AspaOptions o = aspa_options(options.aspa, arm);
  AspaConfig c;
  c.width = options.model.width;
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
  c.gates_per_head = o.gates_per_head;
  c.routing_width = o.routing_width;
  c.alpha = o.alpha;
  if (o.sparse_from > 0) {
    c.alpha *= slider::alpha_for_length(options.model.context, o.dense_until, o.sparse_from);
  }
  c.lambda = o.lambda;
  c.frozen_router = o.frozen_router;
  c.key_shift = !o.no_key_shift;
  c.shared_gate = !o.no_shared_gate;
  c.sink = !o.no_sink;
  c.query_gate = !o.no_query_gate;
  c.key_bias = !o.no_key_bias;
  c.routed_rope = o.rope == "none"   ? RopeSpan::none
                  : o.rope == "full" ? RopeSpan::full
                                     : RopeSpan::half;
  c.balance.enabled = !o.no_balance;
  c.balance.u = o.balance_rate;
  c.balance.follow_rate = !o.balance_constant;
  c.balance.max_role_gap = o.role_gap;
  c.prototypes.enabled = !o.no_prototypes;
  c.prototypes.ema = o.prototype_ema;
  c.prototypes.dead_share = o.dead_share;
  c.prototypes.dead_steps = o.dead_steps;
  c.prototypes.revive = o.gate_every == 0;  // the policy prunes dead gates instead
  c.dropout = options.model.dropout;
  c.seed = seed;
  return c;
}

}  // namespace

std::unique_ptr<Transformer> make_model(const Options& options, const Arm& arm, std::int64_t vocab,
                                        std::uint64_t seed) {
  const ModelOptions& o = options.model;
  TransformerConfig config;
  config.vocab = vocab;
  config.context = o.context;
  config.layers = o.layers;
  config.width = o.width;
  config.mlp = o.mlp == "swiglu" ? MlpKind::swiglu : MlpKind::gelu;
  config.norm = o.norm == "rms" ? NormKind::rms : NormKind::layer;
  config.dropout = o.dropout;
  config.recompute = o.recompute;
  config.seed = seed;
  return std::make_unique<Transformer>(
      config, [&](const AttentionSite& site) -> std::unique_ptr<Attention> {
        if (arm.aspa) {
          const auto layer_seed = seed + static_cast<std::uint64_t>(site.layer);
          return std::make_unique<AspaAttention>(aspa_config(options, arm, layer_seed),
                                                 site.output_std, site.init, site.generator);
        }
        return std::make_unique<DenseAttention>(dense_config(options, arm), site.output_std,
                                                site.init, site.generator);
      });
}

AspaAttention* aspa_layer(const Transformer& model, std::int64_t layer) {
  return dynamic_cast<AspaAttention*>(&model.attention(layer));
}

RoutingSummary routing_summary(const Transformer& model) {
  RoutingSummary sum;
  double layers = 0;
  double churn = 0;
  for (std::int64_t l = 0; l < model.layers(); ++l) {
    const AspaAttention* layer = aspa_layer(model, l);
    if (!layer || layer->config().routed_heads == 0) continue;
    const AspaTelemetry& t = layer->telemetry();
    sum.present = true;
    sum.max_vio = std::max({sum.max_vio, t.query.max_vio, t.key.max_vio});
    sum.entropy = std::min({sum.entropy, t.query.entropy, t.key.entropy});
    sum.dead_gates += t.dead_gates;
    sum.density += t.density;
    churn += t.churn_query < 0 ? -1 : (t.churn_query + t.churn_key) / 2;
    layers += 1;
  }
  if (layers > 0) {
    sum.density /= layers;
    sum.churn = churn < 0 ? -1 : churn / layers;
  }
  return sum;
}

void probe_routing(Transformer& model, const Tensor& tokens) {
  const bool training = model.training();
  model.set_training(false);
  const auto each = [&](auto&& fn) {
    for (std::int64_t l = 0; l < model.layers(); ++l) {
      if (AspaAttention* layer = aspa_layer(model, l)) fn(*layer);
    }
  };
  each([](AspaAttention& layer) { layer.begin_probe(); });
  {
    const NoGradGuard no_grad;
    model.hidden(tokens);
  }
  each([](AspaAttention& layer) { layer.end_probe(); });
  model.set_training(training);
}

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
  const json in = json::parse(text, nullptr, false);
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
