#include "train/stream_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "tensor/error.h"
#include "tensor/parallel.h"
#include "train/models.h"
#include "train/signals.h"

namespace proteus {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::uint64_t kAnswerStream = std::uint64_t{4} << 40;
constexpr std::int64_t kGrain = 1 << 12;  // tokens of a task

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// A key is only in the heads i32 [n, k] that its token enters: in others its logit is 0.
void forget_other_heads(TokenScores& scores, const Tensor& entered) {
  const Tensor heads = entered.to(kCpu).contiguous();
  const std::int64_t H = scores.best.size(1);
  const std::int64_t k = heads.size(1);
  auto* best = scores.best.data<float>();
  const auto* own = heads.data<std::int32_t>();
  parallel_for(scores.best.size(0), kGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      for (std::int64_t h = 0; h < H; ++h) {
        if (std::find(own + t * k, own + (t + 1) * k, h) == own + (t + 1) * k) best[t * H + h] = 0;
      }
    }
  });
}

}  // namespace

std::vector<std::int32_t> TokenText::ids(std::int64_t begin, std::int64_t end) const {
  std::vector<std::int32_t> out(static_cast<std::size_t>(end - begin));
  read(begin, out);
  return out;
}

StreamModel::StreamModel(Transformer& model, const StreamModelConfig& config)
    : model_(model), config_(config) {
  config.shortlist.validate();
  if (config.chunk < 1) {
    throw ConfigError(fmt::format("--chunk: expected at least 1, got {}", config.chunk));
  }
  if (config_.layer < 0) config_.layer = model.layers() - 1;
  if (config_.layer >= model.layers()) {
    throw ConfigError(
        fmt::format("--score-layer: expected at most {} (layers are counted from 0), "
                    "got {}",
                    model.layers() - 1, config.layer));
  }
  layer_ = aspa_layer(model, config_.layer);
  if (!layer_ || layer_->config().routed_heads == 0) {
    throw ConfigError(
        fmt::format("--score-layer {}: expected a layer with routed heads (an ASPA arm), whose "
                    "queries and keys "
                    "make the scores, got one without",
                    config_.layer));
  }
  const std::int64_t heads = layer_->config().routed_heads;
  if (config.shortlist.top_a > heads) {
    throw ConfigError(fmt::format("--top-a: expected at most {} (= routed heads), got {}", heads,
                                  config.shortlist.top_a));
  }
}

std::int64_t StreamModel::lead() const {
  std::int64_t reach = 1;  // the key shift of the scoring layer itself
  for (std::int64_t l = 0; l < config_.layer; ++l) {
    const AspaAttention* below = aspa_layer(model_, l);
    reach += below ? below->config().shared_window + 1 : 1;
  }
  return reach;
}

// The rows before `begin` are scored along: their last one is part of the first token's key.
TokenScores StreamModel::scores(const TokenText& text, const TokenScorer& scorer,
                                std::int64_t begin, std::int64_t end) const {
  const std::int64_t before = std::min(begin, lead());
  const auto ids = text.ids(begin - before, end);
  const auto n = static_cast<std::int64_t>(ids.size());
  const Tensor rows =
      model_.attention_input(Tensor::from_data<std::int32_t>(ids, {1, n}), config_.layer)
          .to(layer_->config().dtype)
          .select(0, 0);
  TokenScores all = scorer.score(rows, {});
  if (config_.routed) forget_other_heads(all, layer_->select(Variable(rows.unsqueeze(0))).key);
  all.best = all.best.slice(0, before, n).contiguous();
  all.query = all.query.slice(0, before, n).contiguous();
  if (all.salience.defined()) all.salience = all.salience.slice(0, before, n).contiguous();
  return all;
}

// Behind the first tokens of the text: a prompt is not the beginning of a sequence in the final
// pass either.
Tensor StreamModel::prompt_inputs(const TokenText& text,
                                  std::span<const std::int32_t> prompt) const {
  auto ids = text.ids(0, std::min(text.tokens, lead()));
  const auto head = static_cast<std::int64_t>(ids.size());
  ids.insert(ids.end(), prompt.begin(), prompt.end());
  const auto n = static_cast<std::int64_t>(ids.size());
  return model_.attention_input(Tensor::from_data<std::int32_t>(ids, {1, n}), config_.layer)
      .to(layer_->config().dtype)
      .select(0, 0)
      .slice(0, head, n)
      .contiguous();
}

Retrieved StreamModel::pass(const TokenText& text, std::span<const std::int32_t> prompt,
                            const std::vector<Winner>& earlier) const {
  if (prompt.empty()) {
    throw ConfigError("--prompt: expected a text whose queries choose what is kept, got nothing");
  }
  const auto begin = Clock::now();
  const Tensor asked = prompt_inputs(text, prompt);
  const Tensor heads =
      config_.routed ? layer_->select(Variable(asked.unsqueeze(0))).query : Tensor();
  const TokenScorer scorer(*layer_, asked, config_.shortlist.salience != 0 && layer_->salience(),
                           heads);
  Shortlist list(config_.shortlist);
  for (std::int64_t at = 0; at < text.tokens && !interrupted(); at += config_.chunk) {
    list.add(scores(text, scorer, at, std::min(text.tokens, at + config_.chunk)));
  }
  list.merge(earlier);
  return {list.winners(),
          list.spans(),
          {prompt.begin(), prompt.end()},
          list.chunks(),
          seconds_since(begin)};
}

Retrieved StreamModel::retrieve(const TokenText& text, std::span<const std::int32_t> prompt) const {
  return pass(text, prompt, {});
}

Retrieved StreamModel::retrieve(const TokenText& text, std::span<const std::int32_t> prompt,
                                std::int64_t rounds, const Expand& expand) const {
  Retrieved kept = retrieve(text, prompt);
  for (std::int64_t round = 1; round < rounds; ++round) {
    std::vector<std::int32_t> asked = expand(kept);
    asked.insert(asked.end(), prompt.begin(), prompt.end());
    Retrieved next = pass(text, asked, kept.winners);
    next.seconds += kept.seconds;
    kept = std::move(next);
  }
  return kept;
}

std::vector<std::int32_t> final_text(const TokenText& text, const std::vector<Span>& spans,
                                     std::span<const std::int32_t> prompt) {
  std::vector<std::int32_t> ids;
  for (const Span& span : spans) {
    const auto part = text.ids(span.begin, span.end);
    ids.insert(ids.end(), part.begin(), part.end());
  }
  ids.insert(ids.end(), prompt.begin(), prompt.end());
  return ids;
}

WholeView::WholeView(const Transformer& model, std::int64_t tokens) {
  for (std::int64_t l = 0; l < model.layers(); ++l) {
    AspaAttention* layer = aspa_layer(model, l);
    if (!layer || layer->config().routed_heads == 0 || layer->config().window >= tokens) continue;
    windows_.emplace_back(layer, layer->config().window);
    layer->set_window(tokens);
  }
}

WholeView::~WholeView() {
  for (const auto& [layer, window] : windows_) layer->set_window(window);
}

std::int32_t next_token(Transformer& model, std::span<const std::int32_t> ids) {
  const auto n = static_cast<std::int64_t>(ids.size());
  const WholeView view(model, n);
  const Tensor logits = model.last_logits(Tensor::from_data<std::int32_t>(ids, {1, n})).to(kCpu);
  const auto* row = logits.data<float>();
  return static_cast<std::int32_t>(std::max_element(row, row + logits.numel()) - row);
}

std::vector<std::int32_t> continue_text(Transformer& model, std::span<const std::int32_t> ids,
                                        std::int64_t count, const SamplerConfig& sampler,
                                        std::uint64_t seed) {
  const WholeView view(model, static_cast<std::int64_t>(ids.size()) + count);
  DecodeState state = model.begin_sequence();
  DecodeState* const sequence = &state;
  std::vector<std::int32_t> text(ids.begin(), ids.end());
  for (std::int64_t i = 0; i < count && !interrupted(); ++i) {
    Tensor logits;
    while (state.position < static_cast<std::int64_t>(text.size())) {
      const auto at = static_cast<std::size_t>(state.position);
      logits = model.step(Tensor::from_data<std::int32_t>(std::span(&text[at], 1), {1}),
                          std::span(&sequence, 1));
    }
    const std::span<const float> row(logits.data<float>(),
                                     static_cast<std::size_t>(logits.numel()));
    text.push_back(draw_candidate(candidates(row, sampler), {seed, kAnswerStream},
                                  static_cast<std::uint64_t>(i)));
  }
  return {text.begin() + static_cast<std::ptrdiff_t>(ids.size()), text.end()};
}

}  // namespace proteus
