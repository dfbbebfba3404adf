// How well a model finds needles in long streams: what of them was kept (retention), and what it
// answers from that. Beside the model's own scores stand ways to keep as many tokens without them.
#pragma once

#include <array>
#include <span>
#include <string_view>
#include <vector>

#include "train/needle_task.h"
#include "train/stream_model.h"

namespace proteus {

/// How tokens are chosen that are kept. All but `recent` keep spans around what they choose.
enum class KeepRule : std::uint8_t {
  scores,          ///< the model's, by the prompt
  random,          ///< a number drawn for every token
  embedding_norm,  ///< |E_x|
  recent           ///< the last ones
};
std::string_view name_of(KeepRule rule);

struct NeedleScore {
  std::int64_t trials = 0;
  std::int64_t retained = 0;           ///< all tokens of all asked needles were kept
  std::int64_t answered = 0;           ///< the last word of the chain was right
  std::int64_t answered_retained = 0;  ///< of those that were retained
  std::int64_t kept = 0;               ///< tokens, summed over the trials
  std::int64_t passes = 0;             ///< over streams, by the model's scores
  double stream_seconds = 0;           ///< of these
  /// By the depth of the (first) asked needle.
  std::array<std::int64_t, kNeedleDepths> depth_trials{};
  std::array<std::int64_t, kNeedleDepths> depth_retained{};
  std::array<std::int64_t, kNeedleDepths> depth_answered{};
};

struct NeedleEval {
  StreamModelConfig stream;
  std::vector<NeedleKind> kinds;
  std::int64_t trials = 100;  ///< of each kind
  /// Of two-hop questions; others have one. A round asks also for what the model reads out of the
  /// tokens that the rounds before kept.
  std::int64_t rounds = 2;
};

/// Trials 0 … trials − 1 of a kind. The model is in evaluation mode.
NeedleScore score_needles(Transformer& model, const NeedleTask& task, NeedleKind kind,
                          KeepRule rule, const NeedleEval& eval);

/// The same for a model that just reads the last `context` tokens, question included.
NeedleScore score_truncated(Transformer& model, const NeedleTask& task, NeedleKind kind,
                            std::int64_t trials, std::int64_t context);

/// Fills the blanks of a trial's chain, hop by hop, behind `text`: "mark key _", then "mark _".
/// Whether the last one is right.
bool answers(Transformer& model, const NeedleTrial& trial, std::vector<std::int32_t> text);

/// Whether spans hold all tokens of the needles that a trial asks for.
bool retained(const NeedleTrial& trial, const std::vector<Span>& spans);

}  // namespace proteus
