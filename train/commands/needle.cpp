#include "train/commands/needle.h"

#include <fmt/format.h>

#include <array>
#include <limits>
#include <nlohmann/json.hpp>

#include "tensor/error.h"
#include "train/checkpoint.h"
#include "train/commands.h"
#include "train/commands/answers.h"
#include "train/commands/stream_text.h"
#include "train/commands/text.h"
#include "train/device.h"
#include "train/gates.h"
#include "train/needle_eval.h"
#include "train/signals.h"

namespace proteus {
namespace {

using nlohmann::ordered_json;

constexpr std::array kRules{KeepRule::scores, KeepRule::random, KeepRule::embedding_norm,
                            KeepRule::recent};

double share(std::int64_t part, std::int64_t whole) {
  return whole > 0 ? static_cast<double>(part) / static_cast<double>(whole)
                   : std::numeric_limits<double>::quiet_NaN();
}

NeedleEval needle_eval(const Options& options) {
  NeedleEval eval;
  eval.stream = stream_config(options);
  eval.kinds = needle_kinds(options.recall.needles);
  eval.trials = options.recall.trials;
  eval.rounds = options.stream.rounds;
  return eval;
}

/// The rows of one arm as they come: a table for the terminal, JSON for the summary.
class Results {
 public:
  Results(RunFolder& folder, std::int64_t length) : folder_(folder), length_(length) {}

  void add(const std::string& arm, std::string_view kept_by, NeedleKind kind,
           const NeedleScore& s) {
    const double tokens = share(s.kept, s.trials);
    const double speed = static_cast<double>(length_ * s.passes) / s.stream_seconds;
    table_.add_row({arm, std::string(kept_by), std::string(name_of(kind)), format_number(tokens, 0),
                    format_number(share(s.retained, s.trials), 3),
                    format_number(share(s.answered, s.trials), 3),
                    format_number(share(s.answered_retained, s.retained), 3),
                    s.passes > 0 ? format_count(speed) : "–"});
    ordered_json row{{"arm", arm},
                     {"kept_by", kept_by},
                     {"kind", name_of(kind)},
                     {"trials", s.trials},
                     {"kept_tokens", tokens},
                     {"retained", s.retained},
                     {"answered", s.answered},
                     {"answered_retained", s.answered_retained},
                     {"stream_tokens_per_s", speed}};
    for (std::size_t d = 0; d < s.depth_trials.size(); ++d) {
      row["retained_by_depth"].push_back(share(s.depth_retained[d], s.depth_trials[d]));
      row["answered_by_depth"].push_back(share(s.depth_answered[d], s.depth_trials[d]));
    }
    folder_.log(row);
    json_.push_back(row);
  }
  std::string text() const { return table_.text(); }
  const ordered_json& json() const { return json_; }

 private:
  RunFolder& folder_;
  std::int64_t length_;
  Table table_{{"arm", "kept by", "kind", "kept tokens", "retained", "answered",
                "answered if retained", "tokens/s"}};
  ordered_json json_ = ordered_json::array();
};

void evaluate_arm(const std::string& name, Transformer& model, const NeedleTask& task,
                  const NeedleEval& eval, std::int64_t context, Results& results) {
  model.set_training(false);
  for (const NeedleKind kind : eval.kinds) {
    if (arm_named(name, "--arms").aspa) {
      for (const KeepRule rule : kRules) {
        if (interrupted()) return;
        results.add(name, name_of(rule), kind, score_needles(model, task, kind, rule, eval));
      }
    } else {
      results.add(name, fmt::format("last {}", context), kind,
                  score_truncated(model, task, kind, eval.trials, context));
    }
  }
}

/// A model that an earlier run left in `folder`.
std::unique_ptr<Transformer> trained_model(const std::string& folder, const Options& options) {
  const Checkpoint checkpoint = load_checkpoint(folder, CheckpointPart::model);
  const SavedModel saved = parse_model_json(checkpoint.config, folder);
  if (saved.vocab != options.recall.vocab) {
    throw ConfigError(fmt::format("--vocab: expected {}, as in {}, got {}", saved.vocab, folder,
                                  options.recall.vocab));
  }
  auto model = make_model(saved.options, arm_named(saved.arm, "arm"), saved.vocab, saved.seed);
  restore_model(*model, checkpoint.model, folder);
  model->to(open_device(options.common.device));
  return model;
}

/// Trains a model on lessons and leaves it in a folder of the run.
RunResult train_model(const Options& options, const std::string& arm, RunFolder& folder,
                      ProgressMode mode, std::unique_ptr<Transformer>& model) {
  const auto seed = static_cast<std::uint64_t>(options.common.seed);
  const NeedleLessons lessons(options.model.context, options.recall.pairs, options.recall.vocab,
                              seed);
  const auto batches = [&lessons](RecallSplit split, std::uint64_t index, std::int64_t rows) {
    return lessons.batch(split, index, rows);
  };
  Options training = options;
  training.command = "train";  // the checkpoint is read as one of these: lessons may be short
  SessionConfig config;
  config.label = arm;
  config.seed = seed;
  config.checkpoint = folder.file("checkpoint/" + arm);
  return run_session(training, arm_named(arm, "--arms"),
                     answers_task(options, options.recall.vocab, batches), config, folder, mode,
                     model);
}

}  // namespace

int run_needle(const Options& given) {
  Options options = resolved_for(given, 0);
  RunFolder folder(options);
  const NeedleEval eval = needle_eval(options);
  const NeedleTask task({options.model.context, options.recall.vocab, options.stream.chunk,
                         static_cast<std::uint64_t>(options.common.seed)});
  options.model.context = options.recall.train_length;  // from here on that of the lessons
  Results results(folder, task.config().length);
  ordered_json json = summary_head(options);
  json["task"] = {{"name", "needle"},
                  {"length", task.config().length},
                  {"vocab", task.config().vocab},
                  {"trials", eval.trials},
                  {"buffer", eval.stream.shortlist.buffer},
                  {"train_length", options.model.context},
                  {"pairs", options.recall.pairs}};
  json["arms"] = ordered_json::array();
  for (const std::string& name : options.duel.arms) {
    std::unique_ptr<Transformer> model;
    if (options.checkpoint.checkpoint.empty()) {
      json["arms"].push_back(arm_json(
          train_model(options, name, folder, progress_mode(stdout, options.common.quiet), model)));
    } else {
      model = trained_model(options.checkpoint.checkpoint + "/" + name, options);
    }
    if (!interrupted()) {
      evaluate_arm(name, *model, task, eval, options.model.context, results);
    }
    json["rows"] = results.json();
    folder.write_summary(json);
    if (interrupted()) {
      fmt::print("Interrupted; what was measured so far is in {}\n", folder.path());
      return kInterrupted;
    }
  }
  fmt::print("{}", results.text());
  if (!options.common.quiet) fmt::print("Written to {}\n", folder.path());
  return 0;
}

}  // namespace proteus
