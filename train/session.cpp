#include "train/session.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>

#include "tensor/error.h"
#include "train/checkpoint.h"
#include "train/device.h"
#include "train/gates.h"
#include "train/routing_log.h"
#include "train/signals.h"

namespace proteus {
namespace {

using nlohmann::ordered_json;

constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();  // becomes null in JSON
constexpr std::int64_t kProbeRows = 4;
/// Steps that a device has queued while the host prepares the next.
constexpr std::int64_t kStepsBehind = 1;

/// Everything of a run that the loop below touches.
struct Session {
  const Options& options;
  const Arm& arm;
  const Task& task;
  const SessionConfig& config;
  RunFolder& folder;
  Transformer& model;
  Trainer& trainer;
  Progress& progress;
  DeviceType device;
  RunResult result;
  double interval_loss = 0;  // summed since the last log line
  std::int64_t interval_steps = 0;
  RoutingLog routing_log;
  std::unique_ptr<CheckpointWriter> writer = {};  // none where no checkpoint is written
  std::string about_model = {};                   // the config.json of every checkpoint
  bool save_due = false;

  void save() {
    if (!writer) return;
    using Clock = std::chrono::steady_clock;
    const auto begin = Clock::now();
    writer->save(
        {about_model, trainer.state_json(), module_tensors(model), trainer.optimizer_tensors()});
    const std::chrono::duration<double, std::milli> stall = Clock::now() - begin;
    ordered_json json = line();
    json["checkpoint_stall_ms"] = stall.count();
    folder.log(json);
  }

  ordered_json line(std::int64_t step) const {
    ordered_json json;
    json["arm"] = config.label;
    json["seed"] = config.seed;
    json["step"] = step;
    return json;
  }
  ordered_json line() const { return line(trainer.steps_done()); }

  void log_step(const StepResult& step) {
    interval_loss += step.loss;
    ++interval_steps;
    const bool last = step.step == options.training.steps;
    if (step.step % options.training.log_every != 0 && !last) return;
    result.train_loss = interval_loss / static_cast<double>(interval_steps);
    interval_loss = 0;
    interval_steps = 0;
    ordered_json json = line(step.step);
    json["loss"] = step.loss;
    json["lr"] = step.lr;
    json["grad_norm"] = step.grad_norm;
    json["tokens_per_s"] = progress.tokens_per_second();
    json["seconds"] = progress.seconds();
    json["peak_memory_bytes"] = memory_stats(device).peak_bytes;
    add_routing(json);
    folder.log(json);
    ordered_json detail = line(step.step);
    detail["routing"] = routing_log.line(model);
    if (!detail["routing"].is_null()) folder.log(detail);
  }

  void add_routing(ordered_json& json) const {
    const RoutingSummary r = routing_summary(model);
    if (!r.present) return;
    json["maxvio"] = r.max_vio;
    json["entropy"] = r.entropy;
    json["dead_gates"] = r.dead_gates;
    json["density"] = r.density;
  }

  void evaluate_now() {
    progress.pause();
    begin_tally(model);
    const Evaluation e = task.evaluate(model);
    end_tally(model);
    if (task.probe.inputs.defined()) probe_routing(model, task.probe.inputs);
    const RoutingSummary routing = routing_summary(model);
    result.val_loss = e.loss;
    result.accuracy = e.accuracy;
    result.best_val_loss = result.history.empty() ? e.loss : std::min(result.best_val_loss, e.loss);
    result.history.push_back(
        {trainer.steps_done(), e.loss, e.accuracy, routing.eval_max_vio, routing.churn});
    ordered_json json = line();
    json["val_loss"] = e.loss;
    if (e.accuracy >= 0) json["accuracy"] = e.accuracy;
    if (routing.present) json["churn"] = routing.churn >= 0 ? routing.churn : kUnknown;
    folder.log(json);
    std::string note = fmt::format("{}: step {}: validation loss {}", config.label,
                                   trainer.steps_done(), format_number(e.loss));
    if (e.accuracy >= 0) note += ", accuracy " + format_number(e.accuracy);
    progress.note(note);
    progress.resume();
  }

  void operate_on_gates() {
    // The arm with a frozen router is a control: its gates stay too.
    if (!arm.aspa || aspa_options(options.aspa, arm).frozen_router) return;
    const auto events = operate(options.aspa, trainer.steps_done(), config.seed, model,
                                trainer.optimizer(), task.probe);
    for (const GateEvent& event : events) {
      ordered_json json{{"arm", config.label}, {"seed", config.seed}, {"step", event.step}};
      json["gate_event"] = event_json(event);
      folder.log(json);
      progress.note(fmt::format("{}: step {}: layer {}, {}: {} ({}), loss {} → {}", config.label,
                                event.step, event.layer, event.part, event.edit.operation,
                                event.why, format_number(event.loss_before),
                                format_number(event.loss_after)));
    }
  }

  void log_decisions() {
    for (std::int64_t l = 0; l < model.layers(); ++l) {
      const AspaAttention* layer = aspa_layer(model, l);
      if (!layer || !layer->telemetry().decision) continue;
      const DensityDecision& d = *layer->telemetry().decision;
      ordered_json json = line();
      json["density_decision"] = {
          {"layer", l}, {"density", d.density}, {"k_before", d.k_before}, {"k_after", d.k_after}};
      folder.log(json);
    }
  }

  /// Whether the last two evaluations were as good as the task wants it.
  bool good_enough() const {
    const auto& points = result.history;
    return task.stop_at > 0 && points.size() >= 2 && points.back().accuracy >= task.stop_at &&
           points[points.size() - 2].accuracy >= task.stop_at;
  }

  bool due(std::int64_t every) const {
    return every > 0 && trainer.steps_done() % every == 0 && !trainer.finished();
  }

  /// Reads the results of all steps but the newest `behind`.
  void collect(std::int64_t behind) {
    while (trainer.pending() > behind) {
      const StepResult step = trainer.collect();
      progress.step(step.step, step.loss, step.tokens);
      result.tokens += step.tokens;
      log_step(step);
    }
  }

  void run() {
    // What is logged of gates is that of the step before.
    const bool gated = !gated_parts(model).empty();
    while (!trainer.finished() && !good_enough()) {
      if (interrupted()) {
        result.interrupted = true;
        break;
      }
      if (writer) writer->check();
      trainer.queue_step();
      const bool read_now = gated || due(options.training.eval_every) ||
                            due(options.training.checkpoint_every) || trainer.finished();
      collect(read_now ? 0 : kStepsBehind);
      log_decisions();
      operate_on_gates();
      if (due(options.training.eval_every)) evaluate_now();
      save_due = save_due || due(options.training.checkpoint_every);
      // One that comes due while the last is being written waits for it; the training does not.
      if (save_due && writer && !writer->busy()) {
        collect(0);
        save();
        save_due = false;
      }
    }
    collect(0);
    if (!result.interrupted && !good_enough()) evaluate_now();
    save();
    if (writer) writer->finish();
  }
};

void describe_model(const Transformer& model, std::int64_t context, RunResult& result) {
  result.params = model.parameter_count();
  result.active_params = model.active_parameter_count();
  result.attention_flops_per_token = model.attention_flops_per_token(context);
  result.total_flops_per_token = model.total_flops_per_token(context);
}

}  // namespace

TrainerConfig trainer_config(const Options& options, std::uint64_t seed) {
  const TrainingOptions& o = options.training;
  TrainerConfig c;
  c.steps = o.steps;
  c.lr = o.lr;
  c.min_lr = o.min_lr;
  c.warmup = o.warmup;
  c.cosine = o.schedule == "cosine";
  c.adamw = o.optimizer == "adamw";
  c.beta1 = o.beta1;
  c.beta2 = o.beta2;
  c.weight_decay = o.weight_decay;
  c.clip = o.clip;
  c.grad_accum = o.grad_accum;
  c.freeze_steps = o.freeze_steps;
  using Kind = AlphaSchedule::Kind;
  c.alpha.kind = options.aspa.alpha_schedule == "ramp"     ? Kind::ramp
                 : options.aspa.alpha_schedule == "sample" ? Kind::sampled
                                                           : Kind::fixed;
  c.alpha.steps = options.aspa.alpha_ramp;
  c.alpha.seed = seed;
  return c;
}

Task text_task(const Options& options, const Dataset& dataset, std::uint64_t seed) {
  const std::int64_t context = options.model.context;
  const std::int64_t rows = options.training.batch;
  dataset.check_context(context);
  std::int64_t count = dataset.sequential_batches(Split::validation, rows, context);
  if (options.training.eval_batches > 0) count = std::min(count, options.training.eval_batches);
  Task task;
  task.train = [&dataset, seed, rows, context](std::int64_t i) {
    return dataset.random_batch(seed, static_cast<std::uint64_t>(i), rows, context);
  };
  task.evaluate = [&dataset, rows, context, count](Transformer& model) -> Evaluation {
    const auto batch = [&](std::int64_t i) {
      return dataset.sequential_batch(Split::validation, i, rows, context);
    };
    return {evaluate(model, batch, count).loss, -1};
  };
  task.vocab = dataset.tokenizer().vocab();
  task.tokenizer = dataset.tokenizer().to_json();
  task.probe = dataset.sequential_batch(Split::validation, 0, std::min(rows, kProbeRows), context);
  return task;
}

RunResult run_session(const Options& options, const Arm& arm, const Task& task,
                      const SessionConfig& config, RunFolder& folder, ProgressMode mode,
                      std::unique_ptr<Transformer>& model) {
  const Device device = open_device(options.common.device);
  reset_peak_memory(device.type);
  std::optional<Checkpoint> saved;
  if (config.resume) {
    saved = load_checkpoint(config.checkpoint);
    model = saved_model({options, std::string(arm.name), task.vocab, config.seed, task.tokenizer},
                        saved->model, config.checkpoint);  // before the optimizer takes shapes
    saved->model.clear();
  } else {
    model = make_model(options, arm, task.vocab, config.seed);
  }
  model->to(device);
  Trainer trainer(*model, trainer_config(options, config.seed), task.train);
  if (saved) trainer.restore(saved->optimizer, saved->state, config.checkpoint);
  Progress progress(config.label, options.training.steps, options.training.log_every, mode, stdout,
                    trainer.steps_done());
  Session session{options,  arm,         task, config, folder, *model, trainer,
                  progress, device.type, {},   0,      0,      {}};
  if (!config.checkpoint.empty()) {
    session.writer = std::make_unique<CheckpointWriter>(config.checkpoint, options.training.keep);
    session.about_model =
        model_json({options, std::string(arm.name), task.vocab, config.seed, task.tokenizer});
    if (options.training.checkpoint_every > 0) {
      session.writer->prepare(module_tensors(*model), trainer.optimizer_tensors());
    }
  }
  RunResult& result = session.result;
  result.name = arm.name;
  result.seed = config.seed;
  session.run();
  describe_model(*model, options.model.context, result);  // surgery may have changed it
  result.steps = trainer.steps_done();
  result.tokens_per_s = progress.tokens_per_second();
  result.routing = routing_summary(*model);
  result.peak_memory_bytes = memory_stats(device.type).peak_bytes;
  return result;
}

std::int64_t checkpoint_step(const std::string& checkpoint) {
  return parse_trainer_state(load_checkpoint(checkpoint, CheckpointPart::texts).state, checkpoint)
      .step;
}

std::string shown_name(const RunResult& result) {
  return arm_named(result.name, "arm").leaky ? result.name + " (NOT causal)" : result.name;
}

ordered_json arm_json(const RunResult& r) {
  ordered_json json;
  json["name"] = r.name;
  json["causal"] = !arm_named(r.name, "arm").leaky;
  json["seed"] = r.seed;
  json["params"] = r.params;
  json["active_params"] = r.active_params;
  json["steps"] = r.steps;
  json["tokens"] = r.tokens;
  json["train_loss"] = r.train_loss;
  json["val_loss"] = r.val_loss;
  json["best_val_loss"] = r.best_val_loss;
  if (r.accuracy >= 0) json["accuracy"] = r.accuracy;
  json["tokens_per_s"] = r.tokens_per_s;
  json["attention_flops_per_token"] = r.attention_flops_per_token;
  json["total_flops_per_token"] = r.total_flops_per_token;
  json["peak_memory_bytes"] = r.peak_memory_bytes;
  if (r.routing.present) {
    const auto known = [](double value) { return value >= 0 ? value : kUnknown; };
    json["routing"] = {{"maxvio", r.routing.max_vio},
                       {"maxvio_eval", known(r.routing.eval_max_vio)},
                       {"maxvio_eval_both", known(r.routing.eval_max_vio_both)},
                       {"dead_gates", r.routing.dead_gates},
                       {"density", r.routing.density},
                       {"entropy", r.routing.entropy},
                       {"churn", known(r.routing.churn)}};
  } else {
    json["routing"] = nullptr;
  }
  ordered_json history = ordered_json::array();
  for (const RunPoint& p : r.history) {
    ordered_json point{{"step", p.step}, {"val_loss", p.loss}};
    if (p.accuracy >= 0) point["accuracy"] = p.accuracy;
    if (r.routing.present) {
      point["maxvio"] = p.max_vio;
      point["churn"] = p.churn >= 0 ? p.churn : kUnknown;
    }
    history.push_back(point);
  }
  json["history"] = history;
  return json;
}

}  // namespace proteus
