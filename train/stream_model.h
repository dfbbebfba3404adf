// A model reads a text that is longer than its context: one of its ASPA layers scores the text
// chunk by chunk by what the prompt asks for (aspa/token_scorer.h), a shortlist keeps the best
// (aspa/shortlist.h), and the model reads anchors + kept spans + prompt as one short text, whose
// positions are counted anew. docs/streaming.md.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "aspa/shortlist.h"
#include "aspa/token_scorer.h"
#include "nn/transformer.h"
#include "train/sampler.h"

namespace proteus {

/// Ids that can be read anywhere: read(begin, out) fills out with the tokens from `begin` on.
struct TokenText {
  std::int64_t tokens = 0;
  std::function<void(std::int64_t begin, std::span<std::int32_t> out)> read;

  std::vector<std::int32_t> ids(std::int64_t begin, std::int64_t end) const;
};

struct StreamModelConfig {
  ShortlistConfig shortlist;   ///< its salience counts where the layer has token salience
  std::int64_t chunk = 65536;  ///< tokens that are encoded, scored and chosen from at a time
  std::int64_t layer = -1;     ///< whose queries and keys make the scores; −1 = the last
  bool routed = true;          ///< a query meets a key only in a head that both enter
};

/// What one or more passes over a text kept.
struct Retrieved {
  std::vector<Winner> winners;       ///< in the order of the text
  std::vector<Span> spans;           ///< what the final pass reads
  std::vector<std::int32_t> prompt;  ///< whose queries scored the last pass
  std::int64_t chunks = 0;
  double seconds = 0;  ///< of all passes
};

class StreamModel {
 public:
  /// The model must outlive this, be in evaluation mode and stay where it is. Throws ConfigError
  /// when there is no such layer, or it has no routed heads or fewer than shortlist.top_a.
  StreamModel(Transformer& model, const StreamModelConfig& config);

  /// Tokens before a chunk that are encoded with it: as far back as windows of shared heads and key
  /// shifts of the layers below can see. Their anchors and routed heads see the chunk alone. At
  /// layer 0 a token's score does not depend on where a chunk begins.
  std::int64_t lead() const;
  /// What was kept of the text for `prompt`, in one pass; of an interrupted one, of its first
  /// chunks. Throws ConfigError for an empty prompt,
  /// NumericError.
  Retrieved retrieve(const TokenText& text, std::span<const std::int32_t> prompt) const;
  /// `rounds` passes. expand(retrieved) are ids that the next pass asks for beside the prompt; what
  /// earlier passes kept competes with what it finds.
  using Expand = std::function<std::vector<std::int32_t>(const Retrieved&)>;
  Retrieved retrieve(const TokenText& text, std::span<const std::int32_t> prompt,
                     std::int64_t rounds, const Expand& expand) const;

  const StreamModelConfig& config() const { return config_; }

 private:
  /// One pass, after which what `earlier` ones kept competes for the buffer.
  Retrieved pass(const TokenText& text, std::span<const std::int32_t> prompt,
                 const std::vector<Winner>& earlier) const;
  /// The scores of tokens [begin, end).
  TokenScores scores(const TokenText& text, const TokenScorer& scorer, std::int64_t begin,
                     std::int64_t end) const;
  Tensor prompt_inputs(const TokenText& text, std::span<const std::int32_t> prompt) const;

  Transformer& model_;
  StreamModelConfig config_;
  AspaAttention* layer_;
};

/// The ids of spans, then the prompt: the text of the final pass.
std::vector<std::int32_t> final_text(const TokenText& text, const std::vector<Span>& spans,
                                     std::span<const std::int32_t> prompt);

/// While it lives every routed query of the model sees its whole packed stream, up to `tokens`: a
/// final pass is short, and what was kept for it shall be seen.
class WholeView {
 public:
  WholeView(const Transformer& model, std::int64_t tokens);
  ~WholeView();
  WholeView(const WholeView&) = delete;
  WholeView& operator=(const WholeView&) = delete;

 private:
  std::vector<std::pair<AspaAttention*, std::int64_t>> windows_;  // with what they began with
};

/// The likeliest token behind `ids`, by one final pass.
std::int32_t next_token(Transformer& model, std::span<const std::int32_t> ids);

/// `count` tokens drawn one after another behind `ids`, which are read once.
std::vector<std::int32_t> continue_text(Transformer& model, std::span<const std::int32_t> ids,
                                        std::int64_t count, const SamplerConfig& sampler,
                                        std::uint64_t seed);

}  // namespace proteus
