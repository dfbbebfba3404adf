#include "nn/decoder.h"

#include <string>

#include "autograd/tape.h"
#include "tensor/error.h"
#include "tensor/queue.h"

namespace proteus {

Decoder::Decoder(Transformer& model, const DecoderConfig& config, Choose choose)
    : model_(model), config_(config), choose_(std::move(choose)) {
  if (config_.longest == 0) config_.longest = model.config().context;
  const bool learned = model.config().learned_positions;
  if (config_.batch < 1 || config_.longest < 1 ||
      (learned && config_.longest > model.config().context)) {
    throw ConfigError("decoder: expected at least one sequence of 1 to " +
                      (learned ? std::to_string(model.config().context) : std::string("any")) +
                      " tokens, got " + std::to_string(config_.batch) + " of " +
                      std::to_string(config_.longest));
  }
  const Device device = model.head_weight().device();
  tokens_ = Tensor::zeros({config_.batch}, DType::i32, device);
  positions_ = Tensor::zeros({config_.batch}, DType::i32, device);
  caches_ = model.make_caches(
      {config_.batch, config_.longest, config_.cache, model.config().compute, device});
}

void Decoder::set_tokens(const Tensor& tokens) {
  if (tokens.shape() != tokens_.shape()) {
    throw ShapeError("decoder: tokens: expected " + to_string(tokens_.shape()) +
                     " (= sequences), got " + to_string(tokens.shape()));
  }
  tokens_.copy_(tokens.to(DType::i32).to(tokens_.device()));
}

void Decoder::queue_step() {
  logits_ = model_.step(tokens_, caches_, positions_);
  if (choose_) choose_(tokens_, logits_, positions_);
  ops::advance(positions_);
}

// What a first step leaves behind has to be there before one is recorded: rounded parameters, the
// library's choice of algorithms. What cannot be recorded is queued.
bool Decoder::record() {
  if (!config_.record || failed_ || steps_ == 0 || !Recording::possible(tokens_.device())) {
    return false;
  }
  try {
    recording_ = std::make_unique<Recording>(tokens_.device(), [this] { queue_step(); });
  } catch (const DeviceError&) {
    failed_ = true;
  } catch (const OutOfMemory&) {
    failed_ = true;
  }
  return !failed_;
}

void Decoder::step() {
  if (position_ >= config_.longest) {
    throw ShapeError("decoder: step: expected at most " + std::to_string(config_.longest) +
                     " tokens of a sequence, got " + std::to_string(position_ + 1));
  }
  const NoGradGuard no_grad;
  if (recording_ || record()) {
    recording_->replay(0);
    ++replays_;
  } else {
    queue_step();
  }
  ++steps_;
  ++position_;
}

void Decoder::set_position(std::int64_t position) {
  if (position < 0 || position > config_.longest) {
    throw ShapeError("decoder: set_position: expected 0 to " + std::to_string(config_.longest) +
                     ", got " + std::to_string(position));
  }
  position_ = position;
  positions_.fill_(static_cast<double>(position));
  for (const LayerCaches& caches : caches_) {
    if (position == 0) {
      caches.clear();
      continue;
    }
    for (const ops::StreamCache* c : {&caches.shared, &caches.routed}) {
      if (c->defined()) c->entries.fill_(static_cast<double>(position));
    }
  }
}

std::int64_t Decoder::bytes() const {
  std::int64_t sum = 0;
  for (const LayerCaches& caches : caches_) sum += caches.bytes();
  return sum;
}

}  // namespace proteus
