// Steps of a Trainer that are recorded once and replayed.
#include <algorithm>

#include "tensor/error.h"
#include "train/checkpoint.h"
#include "train/models.h"
#include "train/trainer.h"

namespace proteus {
namespace {

// What a first step leaves behind has to be there before one is recorded: plans of attention, the
// library's choice of algorithms.
constexpr std::int64_t kEagerSteps = 1;
constexpr int kMostFailures = 2;

template <class F>
void each_gating(const Transformer& model, F&& fn) {
  for (const GatedPart& part : gated_parts(model)) {
    if (Gating* gating = part.gated->gates()) fn(*gating);
  }
}

std::vector<Gating::Collected> take_collected(const Transformer& model) {
  std::vector<Gating::Collected> out;
  each_gating(model, [&](Gating& gating) { out.push_back(gating.take_collected()); });
  return out;
}

void renew_copies(const Transformer& model) {
  each_gating(model, [](const Gating& gating) { gating.renew_copies(); });
}

bool same_place(const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](const Tensor& x, const Tensor& y) { return x.raw() == y.raw(); });
}

bool alike(const Tensor& a, const Tensor& b) {
  return a.shape() == b.shape() && a.dtype() == b.dtype();
}

}  // namespace

// Undefined where a layer needs the host within a step. A step updates the parameters that are not
// frozen when it is recorded.
std::optional<std::vector<double>> Trainer::host_numbers(bool frozen) const {
  std::vector<double> all{frozen ? 1.0 : 0.0};
  bool possible = true;
  each_gating(model_, [&](const Gating& gating) {
    const auto numbers = gating.host_numbers();
    possible = possible && numbers;
    if (numbers) all.insert(all.end(), numbers->begin(), numbers->end());
  });
  if (!possible) return std::nullopt;
  return all;
}

// What has to stay where it is.
std::vector<Tensor> Trainer::tensors() const {
  std::vector<Tensor> all;
  for (const auto& [name, tensor] : module_tensors(model_)) all.push_back(tensor);
  for (const auto& [name, tensor] : optimizer_->state()) all.push_back(tensor);
  return all;
}

void Trainer::bump_parameters() const {
  for (const ParameterRef& p : optimizer_->parameters()) p.variable.value().bump_version();
}

// Ignored targets are left out of the product: their number would have to stay.
bool Trainer::recordable(const std::vector<Input>& inputs) const {
  const Device device = optimizer_->numbers().device();
  return config_.record && failed_recordings_ < kMostFailures && eager_steps_ >= kEagerSteps &&
         Recording::possible(device) &&
         std::none_of(inputs.begin(), inputs.end(), [](const Input& in) {
           return in.targets.rows.defined() || in.targets.count == 0;
         });
}

bool Trainer::fits_recorded(const std::vector<Input>& inputs) const {
  if (!recorded_) return false;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    if (!alike(recorded_->inputs[i].tokens, inputs[i].tokens)) return false;
  }
  return recorded_->routing == *host_numbers_ && same_place(recorded_->tensors, tensors());
}

// False: something in the step cannot be recorded, such as a plan of attention that another shape
// has replaced; it is run instead, which may mend that.
bool Trainer::record(const std::vector<Input>& inputs) {
  recorded_.reset();
  // A pass between two steps may have rounded the values as they are: the step has to round its
  // own.
  bump_parameters();
  auto recorded = std::make_unique<Recorded>();
  recorded->inputs = inputs;
  recorded->tensors = tensors();
  recorded->routing = *host_numbers_;
  renew_copies(model_);
  Generator& draws = model_.generator();
  recorded->stream = draws.stream();
  try {
    recorded->work =
        std::make_unique<Recording>(optimizer_->numbers().device(), [&] { run(recorded->inputs); });
  } catch (const DeviceError&) {
    ++failed_recordings_;
  } catch (const OutOfMemory&) {
    failed_recordings_ = kMostFailures;
  }
  recorded->collected = take_collected(model_);
  optimizer_->zero_grad();  // of what was recorded nothing has run
  bump_parameters();        // nor has what was rounded been written
  recorded->streams = draws.stream() - recorded->stream;
  draws.set_stream(recorded->stream);
  if (!recorded->work) return false;
  recorded_ = std::move(recorded);
  return true;
}

void Trainer::replay(const std::vector<Input>& inputs) {
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const Input& kept = recorded_->inputs[i];
    kept.tokens.copy_(inputs[i].tokens);
    kept.targets.words.copy_(inputs[i].targets.words);
  }
  renew_copies(model_);
  Generator& draws = model_.generator();
  recorded_->work->replay(draws.stream() - recorded_->stream);
  draws.set_stream(draws.stream() + recorded_->streams);
  auto collected = recorded_->collected.begin();
  each_gating(model_, [&](Gating& gating) { gating.put_collected(*collected++); });
  bump_parameters();
  ++replays_;
}

}  // namespace proteus
