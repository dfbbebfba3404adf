#include "train/trainer.h"

#include <fmt/format.h>

#include <cmath>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>

#include "autograd/tape.h"
#include "nn/evaluation_mode.h"
#include "optim/adamw.h"
#include "optim/clip.h"
#include "optim/schedule.h"
#include "optim/sgd.h"
#include "tensor/error.h"
#include "tensor/ops/embedding.h"
#include "train/json_file.h"
#include "train/models.h"

namespace proteus {
namespace {

std::vector<ParameterRef> parameter_refs(const Module& model) {
  std::vector<ParameterRef> refs;
  for (const Parameter& p : model.parameters()) refs.push_back({p.name, p.variable, p.decay});
  return refs;
}

std::unique_ptr<Optimizer> make_optimizer(const Module& model, const TrainerConfig& c) {
  if (!c.adamw) return std::make_unique<Sgd>(parameter_refs(model), c.beta1, c.weight_decay);
  return std::make_unique<AdamW>(parameter_refs(model),
                                 AdamWConfig{c.beta1, c.beta2, 1e-8, c.weight_decay});
}

std::int64_t count_targets(const Tensor& targets) {
  const auto* t = targets.data<std::int32_t>();
  std::int64_t n = 0;
  for (std::int64_t i = 0; i < targets.numel(); ++i) n += t[i] != kIgnoredTarget;
  return n;
}

void check_finite(const char* what, double value, std::int64_t step) {
  if (std::isfinite(value)) return;
  // The sign of a NaN says nothing and differs between compilers: "-nan" would only puzzle.
  if (std::isnan(value)) value = std::numeric_limits<double>::quiet_NaN();
  throw NumericError(fmt::format(
      "training: the {} became {} at step {}; try a smaller --lr, a longer --warmup or --clip 1",
      what, value, step));
}

/// Gives everything that has an alpha the schedule's until the end of the scope.
class ScheduledAlpha {
 public:
  ScheduledAlpha(const Transformer& model, const AlphaSchedule& schedule, std::int64_t step) {
    if (schedule.kind == AlphaSchedule::Kind::fixed) return;
    for (const GatedPart& part : gated_parts(model)) {
      parts_.emplace_back(part.gated, part.gated->alpha());
      AlphaSchedule scaled = schedule;
      scaled.alpha = part.gated->alpha();
      part.gated->set_alpha(scaled.at(step));
    }
  }
  ~ScheduledAlpha() {
    for (const auto& [part, alpha] : parts_) part->set_alpha(alpha);
  }
  ScheduledAlpha(const ScheduledAlpha&) = delete;
  ScheduledAlpha& operator=(const ScheduledAlpha&) = delete;

 private:
  std::vector<std::pair<Gated*, double>> parts_;
};

/// Parameters that get no gradient, and so no update, until the end of the scope.
class FrozenParameters {
 public:
  FrozenParameters(const std::vector<ParameterRef>& parameters, bool on) {
    if (!on) return;
    for (const ParameterRef& p : parameters) {
      if (routes(p.name)) continue;
      p.variable.set_requires_grad(false);
      frozen_.push_back(p.variable);
    }
  }
  ~FrozenParameters() {
    for (const Variable& v : frozen_) v.set_requires_grad(true);
  }
  FrozenParameters(const FrozenParameters&) = delete;
  FrozenParameters& operator=(const FrozenParameters&) = delete;

 private:
  std::vector<Variable> frozen_;
};

}  // namespace

Trainer::Trainer(Transformer& model, const TrainerConfig& config, BatchSource batch)
    : model_(model),
      config_(config),
      batch_(std::move(batch)),
      optimizer_(make_optimizer(model, config)) {
  const Device device = optimizer_->numbers().device();
  losses_ = Tensor::zeros({config.grad_accum}, DType::f64, device);
  squared_norm_ = Tensor::zeros({1}, DType::f64, device);
  report_ = Tensor::zeros({2}, DType::f64, device);
}

double Trainer::learning_rate() const {
  const std::int64_t step = steps_done();
  if (!config_.cosine) return constant_lr(step, config_.lr, config_.warmup);
  return cosine_lr(step, config_.steps, config_.lr, config_.min_lr, config_.warmup);
}

Trainer::Input Trainer::ready(const Batch& batch) const {
  const Tensor& table = model_.head_weight();
  const std::int64_t V = table.size(0);
  ops::check_ids(batch.inputs, V);
  return {batch.inputs.to(table.device()),
          ops::ready_targets(batch.targets, V, kIgnoredTarget, table.device())};
}

// All of a step that depends on numbers of the device only.
void Trainer::run(const std::vector<Input>& inputs) {
  const double share = 1.0 / static_cast<double>(config_.grad_accum);
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const Variable loss = model_.loss(inputs[i].tokens, inputs[i].targets);
    losses_.select(0, static_cast<std::int64_t>(i)).copy_(loss.value());
    loss.backward(Tensor::full(loss.shape(), share, loss.dtype(), loss.device()));
  }
  squared_gradients(optimizer_->parameters(), squared_norm_);
  const Tensor& numbers = optimizer_->numbers();
  step_scale(numbers.device(),
             {losses_.data<double>(), config_.grad_accum, share, squared_norm_.data<double>(),
              config_.clip, reinterpret_cast<StepNumbers*>(numbers.raw()), report_.data<double>()});
  optimizer_->update();
  optimizer_->zero_grad();
}

void Trainer::queue_step() {
  model_.set_training(true);
  optimizer_->zero_grad();
  const std::int64_t step = steps_done();
  const bool frozen = step < config_.freeze_steps && !gated_parts(model_).empty();
  const FrozenParameters kept(optimizer_->parameters(), frozen);
  const ScheduledAlpha alpha(model_, frozen ? AlphaSchedule{} : config_.alpha,
                             step - config_.freeze_steps);
  StepResult result;
  result.step = step + 1;
  result.lr = learning_rate();
  std::vector<Input> inputs;
  for (std::int64_t i = 0; i < config_.grad_accum; ++i) {
    inputs.push_back(ready(batch_(batches_ + i)));
    result.tokens += inputs.back().tokens.numel();
  }
  batches_ += config_.grad_accum;
  optimizer_->begin_step(result.lr);
  const auto before = std::exchange(host_numbers_, host_numbers(frozen));
  const bool steady = host_numbers_ && host_numbers_ == before;
  if (steady && recordable(inputs) && (fits_recorded(inputs) || record(inputs))) {
    replay(inputs);
  } else {
    run(inputs);
    ++eager_steps_;
  }
  pending_.push_back({result, Readback(report_)});
  // Routing must not move by a step that is not finite; dense layers have none.
  if (!gated_parts(model_).empty()) {
    pending_.back().wait();
    if (!pending_.back().finite()) return;
  }
  model_.after_step(result.lr / config_.lr);
}

void Trainer::Pending::wait() {
  if (read) return;
  const Tensor numbers = report.wait();
  result.loss = numbers.data<double>()[0];
  result.grad_norm = numbers.data<double>()[1];
  read = true;
}

StepResult Trainer::collect() {
  pending_.front().wait();
  const bool finite = pending_.front().finite();
  const StepResult result = pending_.front().result;
  pending_.pop_front();
  if (!finite) {
    batches_ -= config_.grad_accum * static_cast<std::int64_t>(1 + pending_.size());
    pending_.clear();
    optimizer_->set_steps(result.step - 1);
    optimizer_->allow_updates();
  }
  check_finite("loss", result.loss, result.step);
  check_finite("gradient norm", result.grad_norm, result.step);
  return result;
}

StepResult Trainer::step() {
  queue_step();
  while (pending() > 1) collect();
  return collect();
}

std::string Trainer::state_json() const {
  const Generator& dropout = model_.generator();
  return nlohmann::json{{"step", steps_done()},
                        {"batches", batches_},
                        {"dropout_seed", dropout.seed()},
                        {"dropout_stream", dropout.stream()}}
      .dump(2);
}

void Trainer::restore(const NamedTensors& tensors, const std::string& state,
                      const std::string& source) {
  const TrainerState counters = parse_trainer_state(state, source);
  const std::map<std::string, Tensor> given(tensors.begin(), tensors.end());
  const NamedTensors own = optimizer_->state();
  for (const auto& [name, tensor] : own) {
    const auto found = given.find(name);
    if (found == given.end() || found->second.shape() != tensor.shape() ||
        found->second.dtype() != tensor.dtype()) {
      throw FileError(fmt::format("{}: optimizer: \"{}\": expected {}, got {}", source, name,
                                  describe(tensor),
                                  found == given.end() ? "nothing" : describe(found->second)));
    }
  }
  for (const auto& [name, tensor] : own) tensor.copy_(given.at(name));
  optimizer_->set_steps(counters.step);
  batches_ = counters.batches;
  model_.generator() = Generator(counters.dropout_seed, counters.dropout_stream);
}

TrainerState parse_trainer_state(const std::string& text, const std::string& source) {
  const auto json = parse_json_file(text, source + ": state.json");
  const auto counter = [&](const char* name, std::uint64_t most) {
    if (!json.is_object() || !json.contains(name) || !json[name].is_number_unsigned() ||
        json[name].get<std::uint64_t>() > most) {
      throw FileError(fmt::format("{}: state.json: expected the counter \"{}\"", source, name));
    }
    return json[name].get<std::uint64_t>();
  };
  // No run gets there; products of these counters stay within 64 bits.
  constexpr std::uint64_t kMostSteps = 1'000'000'000'000'000;
  constexpr std::uint64_t kMost = std::numeric_limits<std::uint64_t>::max();
  return {static_cast<std::int64_t>(counter("step", kMostSteps)),
          static_cast<std::int64_t>(counter("batches", kMostSteps)), counter("dropout_seed", kMost),
          counter("dropout_stream", kMost)};
}

EvalResult evaluate(Transformer& model, const BatchSource& batch, std::int64_t count) {
  const EvaluationMode mode(model);
  const NoGradGuard no_grad;
  EvalResult result;
  double sum = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const Batch b = batch(i);
    const std::int64_t targets = count_targets(b.targets);
    if (targets == 0) continue;
    sum += model.loss(b.inputs, b.targets, kIgnoredTarget).value().item() *
           static_cast<double>(targets);
    result.targets += targets;
  }
  if (result.targets > 0) result.loss = sum / static_cast<double>(result.targets);
  return result;
}

}  // namespace proteus
