#include "train/generate.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <span>

#include "tensor/error.h"
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

}  // namespace

Generated generate(Transformer& model, const Tokenizer& tokenizer, const SamplingOptions& options,
                   std::uint64_t seed) {
  std::vector<std::int32_t> ids;
  if (!options.prompt.empty()) {
    ids = tokenizer.encode_option(options.prompt, "--prompt");
  } else {
    try {
      ids = tokenizer.encode_option("\n", "--prompt");
    } catch (const ConfigError&) {
      ids = {0};  // a text without line breaks
    }
  }
  const SamplerConfig config = sampler_config(options);
  const ConsensusWatch consensus(model);
  if (config.top_a != TopA::off && !consensus.present()) {
    throw ConfigError(
        "--top-a: expected a model whose last layer has routed heads (an ASPA arm), got one "
        "without; use --top-a off");
  }
  const bool training = model.training();
  model.set_training(false);
  const std::size_t start = options.prompt.empty() ? ids.size() : 0;
  Continuation next(model, options.cache_dtype == "int8" ? CacheType::int8 : CacheType::full);
  Budget budget(model, options.latency_budget);
  AgreementSummary agreement;
  for (std::int64_t i = 0; i < options.sample_tokens; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    const Tensor logits = next.logits(ids);
    budget.observe(std::chrono::steady_clock::now() - begin);
    // A model may have more ids than its tokenizer: GPT-2's table is often padded.
    const std::span<const float> row(logits.data<float>(), static_cast<std::size_t>(std::min(
                                                               logits.numel(), tokenizer.vocab())));
    std::vector<Candidate> list = candidates(row, config);
    if (consensus.present()) agreement.add(consensus.heads());
    if (config.top_a != TopA::off) {
      const std::vector<double> cosines = consensus.candidates(list);
      list = apply_top_a(std::move(list), cosines, config);
    }
    ids.push_back(draw_candidate(list, {seed, kSampleStream}, static_cast<std::uint64_t>(i)));
  }
  model.set_training(training);
  return {tokenizer.decode(std::span(ids).subspan(start)), budget.decisions(), agreement};
}

}  // namespace proteus
