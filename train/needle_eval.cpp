#include "train/needle_eval.h"

#include <algorithm>
#include <cmath>

#include "tensor/parallel.h"
#include "train/signals.h"

namespace proteus {
namespace {

constexpr std::uint64_t kRandomSalt = 0x6e65'6564'6c65'0004;
constexpr std::int64_t kGrain = 1 << 14;

TokenText text_of(const NeedleTask& task, const NeedleTrial& trial) {
  return {task.config().length, [&task, &trial](std::int64_t begin, std::span<std::int32_t> out) {
            parallel_for(static_cast<std::int64_t>(out.size()), kGrain,
                         [&](std::int64_t from, std::int64_t to) {
                           task.fill(trial, begin + from,
                                     out.subspan(static_cast<std::size_t>(from),
                                                 static_cast<std::size_t>(to - from)));
                         });
          }};
}

// Scores that do not ask: the same buffer, the same spans, every token a candidate.
ShortlistConfig askless(ShortlistConfig config) {
  config.top_p = 1;
  config.pool = 0;
  config.top_a = 0;
  config.salience = 0;
  return config;
}

std::vector<float> embedding_norms(const Transformer& model) {
  const Tensor table = model.head_weight().to(kCpu);
  const std::int64_t C = table.size(1);
  std::vector<float> norms(static_cast<std::size_t>(table.size(0)));
  for (std::size_t v = 0; v < norms.size(); ++v) {
    const float* row = table.data<float>() + static_cast<std::int64_t>(v) * C;
    double sum = 0;
    for (std::int64_t c = 0; c < C; ++c) sum += static_cast<double>(row[c]) * row[c];
    norms[v] = static_cast<float>(std::sqrt(sum));
  }
  return norms;
}

/// score(position, id) of every token, through a shortlist.
template <class Score>
std::vector<Span> keep_by(const TokenText& text, const StreamModelConfig& config, Score&& score) {
  Shortlist list(askless(config.shortlist));
  for (std::int64_t at = 0; at < text.tokens; at += config.chunk) {
    const auto ids = text.ids(at, std::min(text.tokens, at + config.chunk));
    const auto n = static_cast<std::int64_t>(ids.size());
    const TokenScores scores{Tensor::empty({n, 1}), Tensor::zeros({n, 1}, DType::i32)};
    auto* best = scores.best.data<float>();
    parallel_for(n, kGrain, [&](std::int64_t from, std::int64_t to) {
      for (std::int64_t i = from; i < to; ++i) {
        best[i] = score(at + i, ids[static_cast<std::size_t>(i)]);
      }
    });
    list.add(scores);
  }
  return list.spans();
}

/// `norms` of the embedding's rows.
std::vector<Span> keep_without(const NeedleTask& task, const NeedleTrial& trial, KeepRule rule,
                               const std::vector<float>& norms, const StreamModelConfig& config) {
  const TokenText text = text_of(task, trial);
  if (rule == KeepRule::recent) {
    const std::int64_t kept = std::min(text.tokens, config.shortlist.buffer);
    return {{text.tokens - kept, text.tokens}};
  }
  if (rule == KeepRule::embedding_norm) {
    return keep_by(text, config, [&](std::int64_t, std::int32_t id) {
      return norms[static_cast<std::size_t>(id)];
    });
  }
  const RngKey key{task.config().seed ^ kRandomSalt, trial.index};
  return keep_by(text, config, [&](std::int64_t t, std::int32_t) {
    return unit_float(random_u32(key, static_cast<std::uint64_t>(t)));
  });
}

// The words that the model puts into the first `hops` blanks behind `text`: "mark word _", then
// "mark _ _".
std::vector<std::int32_t> follow(Transformer& model, std::vector<std::int32_t> text,
                                 std::int32_t word, std::int64_t hops) {
  std::vector<std::int32_t> words;
  for (std::int64_t hop = 0; hop < hops; ++hop) {
    text.push_back(kNeedleMark);
    text.push_back(word);
    word = next_token(model, text);
    text.push_back(word);
    words.push_back(word);
  }
  return words;
}

// The questions of the round behind `hops` others: the model reads what was kept, and asks for the
// words that it finds there, in the question's form.
std::vector<std::int32_t> next_questions(Transformer& model, const NeedleTrial& trial,
                                         std::vector<std::int32_t> kept, std::int64_t hops) {
  std::vector<std::int32_t> ids;
  for (const std::int32_t word : follow(model, std::move(kept), trial.chain.front(), hops)) {
    ids.push_back(kNeedleMark);
    ids.push_back(word);
  }
  return ids;
}

void count(NeedleScore& score, const NeedleTrial& trial, bool kept, bool right) {
  ++score.trials;
  score.retained += kept;
  score.answered += right;
  score.answered_retained += kept && right;
  const auto depth = static_cast<std::size_t>(trial.depth);
  ++score.depth_trials[depth];
  score.depth_retained[depth] += kept;
  score.depth_answered[depth] += right;
}

}  // namespace

std::string_view name_of(KeepRule rule) {
  switch (rule) {
    case KeepRule::scores:
      return "scores";
    case KeepRule::random:
      return "random";
    case KeepRule::embedding_norm:
      return "embedding norm";
    case KeepRule::recent:
      break;
  }
  return "most recent";
}

bool retained(const NeedleTrial& trial, const std::vector<Span>& spans) {
  return std::all_of(trial.needles.begin(), trial.needles.end(), [&](const Needle& needle) {
    if (!needle.asked) return true;
    // Spans do not touch: one of them holds the whole needle, or none does.
    return std::any_of(spans.begin(), spans.end(), [&](const Span& span) {
      return span.begin <= needle.position && needle.position + kNeedleTokens <= span.end;
    });
  });
}

bool answers(Transformer& model, const NeedleTrial& trial, std::vector<std::int32_t> text) {
  const auto hops = static_cast<std::int64_t>(trial.chain.size()) - 1;
  return follow(model, std::move(text), trial.chain.front(), hops).back() == trial.chain.back();
}

NeedleScore score_needles(Transformer& model, const NeedleTask& task, NeedleKind kind,
                          KeepRule rule, const NeedleEval& eval) {
  NeedleScore score;
  const auto trial_of = [&](std::int64_t i) {
    return task.trial(kind, static_cast<std::uint64_t>(i));
  };
  std::vector<std::vector<Span>> spans(static_cast<std::size_t>(eval.trials));
  if (rule == KeepRule::scores) {
    const StreamModel stream(model, eval.stream);
    for (std::int64_t i = 0; i < eval.trials && !interrupted(); ++i) {
      const NeedleTrial trial = trial_of(i);
      const TokenText text = text_of(task, trial);
      const std::int64_t rounds = kind == NeedleKind::two_hop ? eval.rounds : 1;
      std::int64_t hops = 0;
      const Retrieved kept =
          stream.retrieve(text, trial.question(), rounds, [&](const Retrieved& last) {
            return next_questions(model, trial, final_text(text, last.spans, {}), ++hops);
          });
      score.passes += rounds;
      score.stream_seconds += kept.seconds;
      spans[static_cast<std::size_t>(i)] = kept.spans;
    }
  } else {
    const std::vector<float> norms = embedding_norms(model);
    parallel_for(eval.trials, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        const NeedleTrial trial = trial_of(i);
        spans[static_cast<std::size_t>(i)] = keep_without(task, trial, rule, norms, eval.stream);
      }
    });
  }
  for (std::int64_t i = 0; i < eval.trials && !interrupted(); ++i) {
    const NeedleTrial trial = trial_of(i);
    const std::vector<Span>& kept = spans[static_cast<std::size_t>(i)];
    score.kept += tokens_of(kept);
    count(score, trial, retained(trial, kept),
          answers(model, trial, final_text(text_of(task, trial), kept, {})));
  }
  return score;
}

NeedleScore score_truncated(Transformer& model, const NeedleTask& task, NeedleKind kind,
                            std::int64_t trials, std::int64_t context) {
  NeedleScore score;
  const auto length = task.config().length;
  for (std::int64_t i = 0; i < trials; ++i) {
    const NeedleTrial trial = task.trial(kind, static_cast<std::uint64_t>(i));
    // Room for "mark word" of every hop and the answers between them.
    const auto asked = kNeedleTokens * static_cast<std::int64_t>(trial.chain.size() - 1) - 1;
    const std::int64_t kept = std::min(length, context - asked);
    const std::vector<Span> spans{{length - kept, length}};
    score.kept += kept;
    count(score, trial, retained(trial, spans),
          answers(model, trial, final_text(text_of(task, trial), spans, {})));
  }
  return score;
}

}  // namespace proteus
