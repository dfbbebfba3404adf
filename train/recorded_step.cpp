// Steps of a Trainer that are recorded once and replayed.
#include <algorithm>

#include "tensor/error.h"
#include "train/models.h"
#include "train/trainer.h"

namespace proteus {
namespace {

// What a first step leaves behind has to be there before one is recorded: plans of attention, the
// library's choice of algorithms.
constexpr std::int64_t kEagerSteps = 1;
constexpr int kMostFailures = 2;

std::vector<const void*> storage_of(const Optimizer& optimizer) {
  std::vector<const void*> all;
  for (const ParameterRef& p : optimizer.parameters()) all.push_back(p.variable.value().raw());
  for (const auto& [name, tensor] : optimizer.state()) all.push_back(tensor.raw());
  return all;
}

bool alike(const Tensor& a, const Tensor& b) {
  return a.shape() == b.shape() && a.dtype() == b.dtype();
}

}  // namespace

// Layers with gates decide on the host, and ignored targets are left out of the product: their
// number would have to stay.
bool Trainer::recordable(const std::vector<Input>& inputs) const {
  const Device device = optimizer_->numbers().device();
  return config_.record && failed_recordings_ < kMostFailures && eager_steps_ >= kEagerSteps &&
         Recording::possible(device) && gated_parts(model_).empty() &&
         std::none_of(inputs.begin(), inputs.end(), [](const Input& in) {
           return in.targets.rows.defined() || in.targets.count == 0;
         });
}

bool Trainer::fits_recorded(const std::vector<Input>& inputs) const {
  if (!recorded_) return false;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    if (!alike(recorded_->inputs[i].tokens, inputs[i].tokens)) return false;
  }
  return recorded_->storage == storage_of(*optimizer_);
}

// False: something in the step cannot be recorded, such as a plan of attention that another shape
// has replaced; it is run instead, which may mend that.
bool Trainer::record(const std::vector<Input>& inputs) {
  recorded_.reset();
  auto recorded = std::make_unique<Recorded>();
  recorded->inputs = inputs;
  recorded->storage = storage_of(*optimizer_);
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
  optimizer_->zero_grad();  // of what was recorded nothing has run
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
  Generator& draws = model_.generator();
  recorded_->work->replay(draws.stream() - recorded_->stream);
  draws.set_stream(draws.stream() + recorded_->streams);
  for (const ParameterRef& p : optimizer_->parameters()) p.variable.value().bump_version();
  ++replays_;
}

}  // namespace proteus
