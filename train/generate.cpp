#include "train/generate.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <optional>
#include <span>

#include "nn/decoder.h"
#include "nn/evaluation_mode.h"
#include "tensor/error.h"
#include "tensor/ops/draw.h"
#include "tensor/queue.h"
#include "train/models.h"
#include "train/sampler.h"

namespace proteus {
namespace {

constexpr std::uint64_t kSampleStream = std::uint64_t{3} << 40;

/// What follows a growing text: token by token while it fits the context that the model was trained
/// on, and anew for the last `context` tokens beyond that.
class Continuation {
 public:
  Continuation(Transformer& model, CacheType cache)
      : model_(model), sequence_(model.begin_sequence(cache)) {}

  Tensor logits(const std::vector<std::int32_t>& ids) {
    const auto size = static_cast<std::int64_t>(ids.size());
    const std::int64_t context = model_.config().context;
    if (size > context) {
      const std::span<const std::int32_t> last(ids.data() + (size - context),
                                               static_cast<std::size_t>(context));
      return model_.last_logits(Tensor::from_data<std::int32_t>(last, {1, context}));
    }
    DecodeState* const sequence = &sequence_;
    Tensor out;
    while (sequence_.position < size) {
      const auto at = static_cast<std::size_t>(sequence_.position);
      out = model_.step(Tensor::from_data<std::int32_t>(std::span(&ids[at], 1), {1}),
                        std::span(&sequence, 1));
    }
    return out;
  }

 private:
  Transformer& model_;
  DecodeState sequence_;
};

/// A latency controller over all gated parts of a model; without a budget it does nothing.
class Budget {
 public:
  Budget(const Transformer& model, double ms) {
    if (ms <= 0) return;
    for (std::int64_t l = 0; l < model.layers(); ++l) {
      AspaAttention* layer = aspa_layer(model, l);
      if (!layer || layer->config().routed_heads == 0) continue;
      layers_.emplace_back(layer, layer->config().window);
    }
    for (const GatedPart& part : gated_parts(model)) {
      if (part.gated->gates()) alphas_.emplace_back(part.gated, part.gated->alpha());
    }
    if (!layers_.empty()) controller_.emplace(ms, alphas_[0].second, layers_[0].second);
  }
  ~Budget() {
    for (const auto& [part, alpha] : alphas_) part->set_alpha(alpha);
    for (const auto& [layer, window] : layers_) layer->set_window(window);
  }
  Budget(const Budget&) = delete;
  Budget& operator=(const Budget&) = delete;

  void observe(std::chrono::duration<double, std::milli> taken) {
    if (!controller_) return;
    const auto decision = controller_->observe(taken.count());
    if (!decision) return;
    for (const auto& [part, alpha] : alphas_) part->set_alpha(decision->alpha);
    for (const auto& [layer, window] : layers_) layer->set_window(decision->window);
    decisions_.push_back(*decision);
  }
  const std::vector<LatencyController::Decision>& decisions() const { return decisions_; }

 private:
  // With what they began with.
  std::vector<std::pair<Gated*, double>> alphas_;
  std::vector<std::pair<AspaAttention*, std::int64_t>> layers_;
  std::optional<LatencyController> controller_;
  std::vector<LatencyController::Decision> decisions_;
};

/// What the routed heads of a model's last layer say while it lives; nothing where there are none.
class ConsensusWatch {
 public:
  explicit ConsensusWatch(const Transformer& model)
      : model_(model), layer_(aspa_layer(model, model.layers() - 1)) {
    if (layer_ && layer_->config().routed_heads == 0) layer_ = nullptr;
    if (layer_) layer_->watch_consensus(true);
  }
  ~ConsensusWatch() {
    if (layer_) layer_->watch_consensus(false);
  }
  ConsensusWatch(const ConsensusWatch&) = delete;
  ConsensusWatch& operator=(const ConsensusWatch&) = delete;

  bool present() const { return layer_ != nullptr; }
  /// A_h of the token that the last logits follow.
  const std::vector<double>& heads() const { return layer_->consensus().agreement.front(); }
  /// a_v of candidates. c is read as the output head reads the stream: through the final norm.
  std::vector<double> candidates(std::span<const Candidate> list) const {
    const Tensor& c = layer_->consensus().c;
    const Tensor last = c.rank() == 3 ? c.select(1, c.size(1) - 1).contiguous() : c;
    return agreement_with(model_.normed(last).select(0, 0), model_.head_weight(), list);
  }

 private:
  const Transformer& model_;
  AspaAttention* layer_;
};

std::vector<std::int32_t> prompt_ids(const Tokenizer& tokenizer, const std::string& prompt) {
  if (!prompt.empty()) return tokenizer.encode_option(prompt, "--prompt");
  try {
    return tokenizer.encode_option("\n", "--prompt");
  } catch (const ConfigError&) {
    return {0};  // a text without line breaks
  }
}

CacheType cache_type(const SamplingOptions& options) {
  return options.cache_dtype == "int8" ? CacheType::int8 : CacheType::full;
}

/// A continuation on the model's device. Tokens are drawn there and read one step late, so that the
/// host never waits for the step that it has just queued.
class DeviceText {
 public:
  DeviceText(Transformer& model, const SamplingOptions& options, std::uint64_t seed,
             std::int64_t vocab, std::vector<std::int32_t>& ids)
      : model_(model), vocab_(vocab), ids_(ids), prompt_(static_cast<std::int64_t>(ids.size())) {
    draw_ = {options.temperature, options.top_k, options.top_p, {seed, kSampleStream}, 0};
    cache_ = cache_type(options);
  }

  void append(std::int64_t count) {
    const std::int64_t context = model_.config().context;
    const std::int64_t decoded = std::clamp<std::int64_t>(context - prompt_ + 1, 0, count);
    if (decoded > 0) decode(decoded);
    for (std::int64_t i = decoded; i < count; ++i) slide(i);
  }

 private:
  void draw(const Tensor& tokens, const Tensor& logits, const Tensor& at, std::int64_t offset) {
    ops::DrawOptions options = draw_;
    options.offset = offset;
    ops::draw_tokens(tokens, logits.slice(1, 0, vocab_), at, options);
  }

  // Token by token; the first drawn one follows position prompt − 1.
  void decode(std::int64_t count) {
    Decoder decoder(model_, {.longest = prompt_ + count - 1, .cache = cache_},
                    [this](const Tensor& tokens, const Tensor& logits, const Tensor& at) {
                      draw(tokens, logits, at, 1 - prompt_);
                    });
    for (std::int64_t i = 0; i < prompt_; ++i) {
      decoder.set_tokens(Tensor::from_data<std::int32_t>(
          std::span<const std::int32_t>(&ids_[static_cast<std::size_t>(i)], 1), {1}));
      decoder.step();
    }
    for (std::int64_t i = 0; i < count; ++i) {
      if (i > 0) decoder.step();
      Readback read(decoder.tokens());
      if (last_) take(*last_);
      last_.emplace(std::move(read));
    }
    take(*last_);
    last_.reset();
  }

  // Beyond the context: a forward pass over its last tokens.
  void slide(std::int64_t i) {
    const std::int64_t context = model_.config().context;
    const auto last = std::span<const std::int32_t>(ids_).last(static_cast<std::size_t>(context));
    const Device device = model_.head_weight().device();
    const Tensor logits =
        model_.last_logits(Tensor::from_data<std::int32_t>(last, {1, context}, device));
    const Tensor tokens = Tensor::zeros({1}, DType::i32, device);
    draw(tokens, logits, Tensor::zeros({1}, DType::i32, device), i);
    Readback read(tokens);
    take(read);
  }

  void take(Readback& read) {
    const auto token = *read.wait().data<std::int32_t>();
    if (token == kNoToken) {
      throw NumericError(fmt::format(
          "sample: the logits after token {} are not finite numbers; the model has gone bad",
          ids_.size()));
    }
    ids_.push_back(token);
  }

  Transformer& model_;
  std::int64_t vocab_;  // ids that the tokenizer knows
  std::vector<std::int32_t>& ids_;
  std::int64_t prompt_;
  ops::DrawOptions draw_;
  CacheType cache_;
  std::optional<Readback> last_;
};

void check_device_options(const SamplingOptions& options, Device device) {
  const char* option = nullptr;
  if (options.top_a != "off") option = "--top-a";
  if (options.latency_budget > 0) option = "--latency-budget";
  if (!option) return;
  throw ConfigError(fmt::format("{}: expected --device cpu, which alone can do that, got {}",
                                option, to_string(device)));
}

}  // namespace

Generated generate(Transformer& model, const Tokenizer& tokenizer, const SamplingOptions& options,
                   std::uint64_t seed) {
  std::vector<std::int32_t> ids = prompt_ids(tokenizer, options.prompt);
  // A model may have more ids than its tokenizer: GPT-2's table is often padded.
  const std::int64_t vocab = std::min(model.config().vocab, tokenizer.vocab());
  const std::size_t start = options.prompt.empty() ? ids.size() : 0;
  const EvaluationMode evaluation(model);
  if (const Device device = model.head_weight().device(); device != kCpu) {
    check_device_options(options, device);
    DeviceText(model, options, seed, vocab, ids).append(options.sample_tokens);
    return {tokenizer.decode(std::span(ids).subspan(start)), {}, {}};
  }
  const SamplerConfig config = sampler_config(options);
  const ConsensusWatch consensus(model);
  if (config.top_a != TopA::off && !consensus.present()) {
    throw ConfigError(
        "--top-a: expected a model whose last layer has routed heads (an ASPA arm), got one "
        "without; use --top-a off");
  }
  Continuation next(model, cache_type(options));
  Budget budget(model, options.latency_budget);
  AgreementSummary agreement;
  for (std::int64_t i = 0; i < options.sample_tokens; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    const Tensor logits = next.logits(ids);
    budget.observe(std::chrono::steady_clock::now() - begin);
    const std::span<const float> row(logits.data<float>(), static_cast<std::size_t>(vocab));
    std::vector<Candidate> list = candidates(row, config);
    if (consensus.present()) agreement.add(consensus.heads());
    if (config.top_a != TopA::off) {
      const std::vector<double> cosines = consensus.candidates(list);
      list = apply_top_a(std::move(list), cosines, config);
    }
    ids.push_back(draw_candidate(list, {seed, kSampleStream}, static_cast<std::uint64_t>(i)));
  }
  return {tokenizer.decode(std::span(ids).subspan(start)), budget.decisions(), agreement};
}

}  // namespace proteus
