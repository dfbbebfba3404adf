// validate: every rule about the values of options.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <initializer_list>
#include <limits>

#include "tensor/error.h"
#include "train/device.h"
#include "train/memory.h"
#include "train/needle_task.h"
#include "train/options.h"
#include "train/recall_task.h"
#include "train/sweep.h"

namespace proteus {
namespace {

/// No size that makes sense is larger; products of three of them still fit into 64 bits.
constexpr std::int64_t kMostSize = 1 << 20;
constexpr std::int64_t kMostCount = 1'000'000'000'000;

void check_range(std::string_view name, std::int64_t value, std::int64_t least, std::int64_t most) {
  if (value >= least && value <= most) return;
  throw ConfigError(value < least
                        ? fmt::format("--{}: expected at least {}, got {}", name, least, value)
                        : fmt::format("--{}: expected at most {}, got {}", name, most, value));
}

void check_unit(std::string_view name, double value) {
  if (value >= 0 && value <= 1) return;
  throw ConfigError(fmt::format("--{}: expected a number in [0, 1], got {}", name, value));
}

void check_below_one(std::string_view name, double value) {
  if (value >= 0 && value < 1) return;
  throw ConfigError(fmt::format("--{}: expected a number in [0, 1), got {}", name, value));
}

void check_share(const char* name, double value) {
  if (value > 0 && value <= 1) return;
  throw ConfigError(fmt::format("--{}: expected a number in (0, 1], got {}", name, value));
}

void check_not_negative(std::string_view name, double value) {
  if (value >= 0 && std::isfinite(value)) return;
  throw ConfigError(fmt::format("--{}: expected a number of at least 0, got {}", name, value));
}

void check_one_of(std::string_view name, std::string_view value,
                  std::initializer_list<std::string_view> allowed) {
  std::string list;
  for (const std::string_view item : allowed) {
    if (item == value) return;
    list += fmt::format("{}{}", list.empty() ? "" : " or ", item);
  }
  throw ConfigError(fmt::format("--{}: expected {}, got '{}'", name, list, value));
}

void check_common(const CommonOptions& o) {
  parse_device(o.device);
  check_range("threads", o.threads, 0, 4096);
  check_range("seed", o.seed, 0, std::numeric_limits<std::int64_t>::max());
  check_one_of("dtype", o.dtype, {"f32", "bf16"});
}

void check_data(const DataOptions& o) {
  std::error_code ignored;
  const bool made = o.tokenizer == "char" || o.tokenizer == "byte" || o.tokenizer == "bpe";
  if (!made && !std::filesystem::exists(o.tokenizer, ignored)) {
    throw ConfigError(fmt::format(
        "--tokenizer: expected char, byte, bpe or the path of a tokenizer, got '{}'", o.tokenizer));
  }
  check_range("vocab-size", o.vocab_size, 256, 1 << 24);
  check_range("shard-tokens", o.shard_tokens, 1, std::numeric_limits<std::int32_t>::max());
  check_range("show", o.show, 0, kMostCount);
}

void check_model(const ModelOptions& o) {
  check_range("layers", o.layers, 1, 4096);
  check_range("width", o.width, 1, kMostSize);
  check_range("context", o.context, 1, std::int64_t{1} << 30);
  check_range("heads", o.heads, 1, kMostSize);
  check_range("head-width", o.head_width, 2, 4096);
  check_one_of("positions", o.positions, {"rope", "learned"});
  if (o.positions == "rope" && o.head_width % 2 != 0) {
    throw ConfigError(
        fmt::format("--head-width: expected an even number (rotary positions turn pairs), got {}; "
                    "--width is {}, --heads {}",
                    o.head_width, o.width, o.heads));
  }
  check_one_of("mlp", o.mlp, {"gelu", "swiglu"});
  check_range("mlp-width", o.mlp_width, 0, kMostSize);
  check_one_of("norm", o.norm, {"layer", "rms"});
  check_below_one("dropout", o.dropout);
}

void check_routed_heads(const AspaOptions& o, const ModelOptions& model) {
  check_range("k", o.k, 1, kMostSize);
  if (o.k > o.routed_heads) {
    throw ConfigError(
        fmt::format("--k: expected at most {} (= --routed-heads), got {}", o.routed_heads, o.k));
  }
  check_share("head-top-p", o.head_top_p);
  check_range("min-heads", o.min_heads, 1, kMostSize);
  check_range("max-heads", o.max_heads, 0, kMostSize);
  check_unit("density", o.density);
  check_unit("density-tolerance", o.density_tolerance);
  check_range("density-every", o.density_every, 1, kMostCount);
  if (o.max_heads > 0 && o.max_heads < o.min_heads) {
    throw ConfigError(fmt::format("--max-heads: expected at least {} (= --min-heads), got {}",
                                  o.min_heads, o.max_heads));
  }
  if (o.head_top_p < 1 && o.min_heads > o.k) {
    throw ConfigError(
        fmt::format("--min-heads: expected at most {} (= --k), got {}", o.k, o.min_heads));
  }
  check_share("token-keep", o.token_keep);
  check_range("token-guard", o.token_guard, 0, std::int64_t{1} << 30);
  check_range("token-keep-min", o.token_keep_min, 0, std::int64_t{1} << 30);
  check_range("window", o.window, 1, std::int64_t{1} << 30);
  check_range("bank-slots", o.bank_slots, 0, kMostSize);
  check_range("bank-stride", o.bank_stride, 1, std::int64_t{1} << 30);
  check_unit("bank-delta", o.bank_delta);
  check_unit("bank-delta-v", o.bank_delta_v);
  check_one_of("bank-eviction", o.bank_eviction, {"score", "fifo", "random"});
  check_range("gates-per-head", o.gates_per_head, 1, 4096);
  check_range("routing-width", o.routing_width, 1, kMostSize);
  if (model.positions == "rope" && o.rope == "half" && model.head_width % 4 != 0) {
    throw ConfigError(
        fmt::format("--head-width: expected a multiple of 4 (half of a routed head is "
                    "rotated in pairs), got {}; or use --rope full",
                    model.head_width));
  }
}

void check_aspa(const AspaOptions& o, const ModelOptions& model) {
  check_unit("alpha", o.alpha);
  check_one_of("alpha-schedule", o.alpha_schedule, {"fixed", "ramp", "sample"});
  check_range("alpha-ramp", o.alpha_ramp, 1, kMostCount);
  check_range("dense-until", o.dense_until, 0, std::int64_t{1} << 40);
  check_range("sparse-from", o.sparse_from, 0, std::int64_t{1} << 40);
  if (o.sparse_from > 0 && o.sparse_from <= o.dense_until) {
    throw ConfigError(fmt::format("--sparse-from: expected more than {} (= --dense-until), got {}",
                                  o.dense_until, o.sparse_from));
  }
  check_range("shared-heads", o.shared_heads, 0, kMostSize);
  check_range("routed-heads", o.routed_heads, 0, kMostSize);
  if (o.shared_heads + o.routed_heads == 0) {
    throw ConfigError(
        "--routed-heads: expected at least 1 when --shared-heads is 0, got 0; a layer needs a "
        "head");
  }
  if (o.shared_heads > 0) check_range("shared-window", o.shared_window, 1, std::int64_t{1} << 30);
  check_range("anchors", o.anchors, 0, std::int64_t{1} << 30);
  check_one_of("rope", o.rope, {"half", "full", "none"});
  if (o.routed_heads > 0) check_routed_heads(o, model);
  if (!std::isfinite(o.lambda)) {
    throw ConfigError(fmt::format("--lambda: expected a finite number, got {}", o.lambda));
  }
  check_not_negative("balance-rate", o.balance_rate);
  check_not_negative("role-gap", o.role_gap);
  check_unit("prototype-ema", o.prototype_ema);
  check_unit("dead-share", o.dead_share);
  check_range("dead-steps", o.dead_steps, 1, kMostCount);
  check_range("gate-every", o.gate_every, 0, kMostCount);
  check_unit("gate-merge-above", o.gate_merge_above);
  check_not_negative("gate-clone-above", o.gate_clone_above);
  check_range("most-gates", o.most_gates, 0, kMostSize);
  check_range("add-heads", o.add_heads, 0, 4096);
  check_range("add-heads-at", o.add_heads_at, 0, kMostCount);
  check_range("head-ramp", o.head_ramp, 0, kMostCount);
  if (o.frozen_router && (o.gate_every > 0 || o.add_heads > 0)) {
    throw ConfigError(fmt::format(
        "--{}: expected 0 with --frozen-router, got {}; a frozen router's gates stay as they are",
        o.gate_every > 0 ? "gate-every" : "add-heads",
        o.gate_every > 0 ? o.gate_every : o.add_heads));
  }
}

void check_experts(const AspaOptions& o, const ModelOptions& model) {
  check_range("experts", o.experts, 0, kMostSize);
  check_range("expert-k", o.expert_k, 0, kMostSize);
  check_range("expert-width", o.expert_width, 0, kMostSize);
  check_one_of("expert-router", o.expert_router, {"own", "attention"});
  if (o.experts == 0) return;
  if (model.bias) {
    throw ConfigError(fmt::format(
        "--experts: expected 0 with --bias, got {}; experts have no biases", o.experts));
  }
  const ExpertWidths widths = expert_widths(o, model);
  if (widths.k > o.experts) {
    throw ConfigError(
        fmt::format("--expert-k: expected at most {} (= --experts), got {}", o.experts, widths.k));
  }
  if (widths.width < 1 || widths.shared < 0) {
    const std::int64_t hidden = widths.shared + widths.k * widths.width;
    throw ConfigError(fmt::format(
        "--expert-width: expected 1 to {} (= hidden width {} of the dense MLP / --expert-k {}), "
        "got {}",
        hidden / widths.k, hidden, widths.k, widths.width));
  }
  if (o.expert_router == "own") return;
  if (o.experts != o.routed_heads) {
    throw ConfigError(fmt::format(
        "--experts: expected {} (= --routed-heads, whose gates they share), got {}; or use "
        "--expert-router own",
        o.routed_heads, o.experts));
  }
  if (widths.k != o.k) {
    throw ConfigError(fmt::format(
        "--expert-k: expected {} (= --k of the heads whose gates they share), got {}; or use "
        "--expert-router own",
        o.k, widths.k));
  }
}

void check_training(const TrainingOptions& o) {
  check_range("batch", o.batch, 1, std::int64_t{1} << 30);
  if (o.epochs != 0) {
    if (!(o.epochs > 0) || !std::isfinite(o.epochs)) {
      throw ConfigError(fmt::format("--epochs: expected a number above 0, got {}", o.epochs));
    }
  } else {
    check_range("steps", o.steps, 1, kMostCount);
  }
  if (!(o.lr > 0) || !std::isfinite(o.lr)) {
    throw ConfigError(fmt::format("--lr: expected a number above 0, got {}", o.lr));
  }
  check_not_negative("min-lr", o.min_lr);
  if (o.min_lr > o.lr) {
    throw ConfigError(
        fmt::format("--min-lr: expected at most {} (= --lr), got {}", o.lr, o.min_lr));
  }
  check_range("warmup", o.warmup, 0, kMostCount);
  check_not_negative("weight-decay", o.weight_decay);
  check_below_one("beta1", o.beta1);
  check_below_one("beta2", o.beta2);
  check_not_negative("clip", o.clip);
  check_one_of("optimizer", o.optimizer, {"adamw", "sgd"});
  check_one_of("schedule", o.schedule, {"cosine", "constant"});
  check_range("grad-accum", o.grad_accum, 1, kMostSize);
  check_range("freeze-steps", o.freeze_steps, 0, kMostCount);
  check_range("log-every", o.log_every, 1, kMostCount);
  check_range("eval-every", o.eval_every, 0, kMostCount);
  check_range("eval-batches", o.eval_batches, 0, kMostCount);
  check_range("checkpoint-every", o.checkpoint_every, 0, kMostCount);
  check_range("keep", o.keep, 1, 1'000'000);
}

void check_sampling(const SamplingOptions& o) {
  check_range("sample-tokens", o.sample_tokens, 0, std::int64_t{1} << 30);
  check_not_negative("latency-budget", o.latency_budget);
  check_one_of("cache-dtype", o.cache_dtype, {"f32", "int8"});
  check_one_of("top-a", o.top_a, {"off", "filter", "blend"});
  const float logit = 0;
  candidates({&logit, 1}, sampler_config(o));
}

/// Before the training, not after it.
void check_top_a_arms(const Options& o) {
  if (o.command != "duel" || o.sampling.top_a == "off") return;
  for (const std::string& name : o.duel.arms) {
    const Arm& arm = arm_named(name, "--arms");
    if (arm.aspa && aspa_options(o.aspa, arm).routed_heads > 0 && !arm.leaky) continue;
    throw ConfigError(
        fmt::format("--top-a: expected --arms whose heads are routed, got '{}'; leave it out of "
                    "--arms or use --top-a off",
                    name));
  }
}

void check_arms(const DuelOptions& o) {
  for (std::size_t i = 0; i < o.arms.size(); ++i) {
    arm_named(o.arms[i], "--arms");
    if (std::find(o.arms.begin(), o.arms.begin() + static_cast<std::ptrdiff_t>(i), o.arms[i]) !=
        o.arms.begin() + static_cast<std::ptrdiff_t>(i)) {
      throw ConfigError(fmt::format("--arms: expected every arm once, got '{}' twice", o.arms[i]));
    }
  }
  if (o.arms.empty()) throw ConfigError("--arms: expected at least one arm, got an empty list");
  check_range("seeds", o.seeds, 1, 10'000);
}

void check_sweep(const SweepOptions& o) {
  sweep_lengths(o.lengths);
  if (sweep_alphas(o.alphas).empty()) {
    throw ConfigError("--alphas: expected at least one number in [0, 1], got an empty list");
  }
  check_range("repeats", o.repeats, 1, 1'000'000);
  check_not_negative("point-seconds", o.point_seconds);
}

void check_recall_task(const Options& o) {
  if (o.recall.task != "needle") {
    RecallTask(recall_config(o, 0));
    return;
  }
  NeedleTask({o.model.context, o.recall.vocab, 0, 0});
  if (o.checkpoint.checkpoint.empty()) {
    NeedleLessons(o.recall.train_length, o.recall.pairs, o.recall.vocab, 0);
  }
  needle_kinds(o.recall.needles);
  check_range("trials", o.recall.trials, 1, kMostCount);
  if (o.duel.seeds != 1) {
    throw ConfigError(
        fmt::format("--seeds: expected 1 with --task needle, got {}; give one --seed after another",
                    o.duel.seeds));
  }
}

/// What a stream keeps, whoever scores it.
void check_shortlist(const StreamOptions& o) {
  check_range("chunk", o.chunk, 1, std::int64_t{1} << 30);
  check_range("buffer", o.buffer, 1, std::int64_t{1} << 30);
  check_range("per-chunk", o.per_chunk, 1, std::int64_t{1} << 30);
  check_share("chunk-keep", o.chunk_keep);
  check_share("final-keep", o.final_keep);
  check_share("top-p", o.top_p);
  check_range("top-a", o.top_a, 0, kMostSize);
  check_range("pool", o.pool, 0, kMostSize);
  check_range("span", o.span, 0, kMostSize);
  if (!std::isfinite(o.salience_weight)) {
    throw ConfigError(
        fmt::format("--salience-weight: expected a finite number, got {}", o.salience_weight));
  }
  check_range("rounds", o.rounds, 1, kMostSize);
  check_range("score-layer", o.score_layer, -1, kMostSize);
  if (!o.ram_limit.empty() && parse_bytes(o.ram_limit) < 0) {
    throw ConfigError(
        fmt::format("--ram-limit: expected a size, as 256M or 4G, got '{}'", o.ram_limit));
  }
}

void check_stream(const Options& options) {
  const StreamOptions& o = options.stream;
  check_shortlist(o);
  const bool model = !options.checkpoint.checkpoint.empty();
  if (model == o.file.empty()) {
    throw ConfigError(fmt::format("--{0}: expected it together with --{1}: a model reads a text",
                                  model ? "checkpoint" : "file", model ? "file" : "checkpoint"));
  }
  if (model) return;
  check_range("length", o.length, 0, kMostCount);
  if (o.length > 0 && o.chunk > o.length) {
    throw ConfigError(
        fmt::format("--chunk: expected at most {} (= --length), got {}", o.length, o.chunk));
  }
  check_range("top-a", o.top_a, 0, options.model.heads);
  check_range("prompt-tokens", o.prompt_tokens, 1, kMostSize);
  if (o.prompt_embeddings.empty() && o.prompt_tokens > o.buffer) {
    throw ConfigError(fmt::format("--prompt-tokens: expected at most {} (= --buffer), got {}",
                                  o.buffer, o.prompt_tokens));
  }
  if (options.aspa.anchors > o.buffer) {
    throw ConfigError(fmt::format("--anchors: expected at most {} (= --buffer), got {}", o.buffer,
                                  options.aspa.anchors));
  }
  if (options.aspa.k > options.model.heads) {
    throw ConfigError(fmt::format("--k: expected at most {} (= --heads), got {}",
                                  options.model.heads, options.aspa.k));
  }
}

// A model that sees the future is measured beside others, and never trained to be used.
void check_causal(const std::string& model) {
  if (!arm_named(model, "--model").leaky) return;
  throw ConfigError(fmt::format(
      "--model: expected a causal arm, got '{}', which selects with the whole sequence in view; "
      "only duel and recall measure it",
      model));
}

void check_frozen(const Options& o) {
  if (o.command != "train" || o.training.freeze_steps == 0) return;
  if (arm_named(o.checkpoint.model, "--model").aspa) return;
  throw ConfigError(fmt::format(
      "--freeze-steps: expected 0 with --model {}, which has no router that could learn, got {}",
      o.checkpoint.model, o.training.freeze_steps));
}

// One thing is read and one is written.
void check_convert(const Options& o) {
  const bool from_gpt2 = !o.convert.from_gpt2.empty();
  const bool to_gpt2 = !o.convert.to_gpt2.empty();
  if (from_gpt2 == !o.checkpoint.checkpoint.empty()) {
    throw ConfigError(fmt::format(
        "--checkpoint: expected the folder of a trained model{}; proteus train makes one",
        from_gpt2 ? " or --from-gpt2 DIR, got both" : " or --from-gpt2 DIR, got nothing"));
  }
  if (to_gpt2 == !o.gates.save.empty()) {
    throw ConfigError(
        fmt::format("--save: expected the folder of the new checkpoint or --to-gpt2 "
                    "DIR, got {}",
                    to_gpt2 ? "both" : "nothing"));
  }
  if (from_gpt2 && to_gpt2) {
    throw ConfigError(
        "--to-gpt2: expected --checkpoint with it, got --from-gpt2; that is one already");
  }
}

}  // namespace

SamplerConfig sampler_config(const SamplingOptions& o) {
  const TopA top_a = o.top_a == "filter"  ? TopA::filter
                     : o.top_a == "blend" ? TopA::blend
                                          : TopA::off;
  return {o.temperature, o.top_k, o.top_p, top_a, o.top_a_threshold, o.top_a_weight};
}

void validate(const Options& o) {
  const bool recall = o.command == "recall";
  check_common(o.common);
  check_data(o.data);
  check_model(o.model);
  check_aspa(o.aspa, o.model);
  check_experts(o.aspa, o.model);
  check_training(o.training);
  check_sampling(o.sampling);
  check_arms(o.duel);
  check_sweep(o.sweep);
  check_top_a_arms(o);
  check_causal(o.checkpoint.model);
  check_frozen(o);
  if (recall) {
    check_unit("stop-at", o.recall.stop_at);
    check_shortlist(o.stream);
    check_recall_task(o);
  }
  if (o.command == "stream") check_stream(o);
  check_one_of("part", o.gates.part, {"attention", "mlp"});
  if (!o.gates.edit.empty()) {
    check_one_of("edit", o.gates.edit,
                 {"clone", "merge", "prune", "re-home", "add-head", "prune-head"});
  }
  check_not_negative("noise", o.gates.noise);
  check_not_negative("most-usage", o.gates.most_usage);
  if (o.command == "convert") check_convert(o);
  if ((o.command == "eval" || o.command == "sample" || o.command == "gates") &&
      o.checkpoint.checkpoint.empty()) {
    throw ConfigError(
        "--checkpoint: expected the folder of a trained model, got nothing; proteus train makes "
        "one");
  }
  if (o.command == "report" && o.report.runs.empty()) {
    throw ConfigError("--runs: expected run folders, as in: proteus report runs/first runs/second");
  }
  if (o.command == "inspect" && o.output.path.empty()) {
    throw ConfigError("inspect: expected a path, as in: proteus inspect runs/aspa/checkpoint");
  }
  if (o.command == "stream" && !o.stream.file.empty() && o.common.device != "cpu") {
    throw ConfigError(
        fmt::format("--device: expected cpu, got '{}'; a model reads a stream on the CPU, wherever "
                    "it was trained",
                    o.common.device));
  }
  if (o.checkpoint.resume && o.common.out.empty() && o.checkpoint.checkpoint.empty()) {
    throw ConfigError(
        "--resume: expected --out DIR with the run's folder beside it; it holds the checkpoint");
  }
}

}  // namespace proteus
