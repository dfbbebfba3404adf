// proteus recall: trains every arm on a synthetic recall task and scores it.
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "train/commands.h"
#include "train/commands/answers.h"
#include "train/commands/needle.h"
#include "train/commands/text.h"

namespace proteus {
namespace {

// The largest fall from a previous best on the way: 0 for a run that only rose.
double largest_fall(const RunResult& r) {
  double best = 0;
  double fall = 0;
  for (const RunPoint& p : r.history) {
    best = std::max(best, p.accuracy);
    fall = std::max(fall, best - p.accuracy);
  }
  return fall;
}

Table scores(const std::vector<RunResult>& results) {
  Table table({"arm", "seed", "params", "steps", "accuracy", "largest fall", "loss", "tokens/s",
               "MaxVio", "of both roles", "churn"});
  for (const RunResult& r : results) {
    table.add_row(
        {shown_name(r), fmt::to_string(r.seed), format_count(static_cast<double>(r.params)),
         fmt::to_string(r.steps), format_number(r.accuracy), format_number(largest_fall(r)),
         format_number(r.val_loss), format_count(r.tokens_per_s),
         format_routing(r.routing.eval_max_vio, 2), format_routing(r.routing.eval_max_vio_both, 2),
         format_routing(r.routing.churn, 3)});
  }
  return table;
}

}  // namespace

int run_recall(const Options& given) {
  if (given.recall.task == "needle") return run_needle(given);
  const Options options = resolved_for(given, 0);
  RunFolder folder(options);
  const ProgressMode mode = progress_mode(stdout, options.common.quiet);
  std::vector<RunResult> results;
  nlohmann::ordered_json json = summary_head(options);
  json["task"] = {{"name", options.recall.task},
                  {"length", options.model.context},
                  {"pairs", options.recall.pairs},
                  {"vocab", options.recall.vocab},
                  {"shortest", options.recall.shortest}};
  json["arms"] = nlohmann::ordered_json::array();
  for (const std::string& name : options.duel.arms) {
    for (std::int64_t i = 0; i < options.duel.seeds; ++i) {
      const auto seed = static_cast<std::uint64_t>(options.common.seed + i);
      const RecallTask source(recall_config(options, seed));
      const auto batches = [&source](RecallSplit split, std::uint64_t index, std::int64_t rows) {
        return source.batch(split, index, rows);
      };
      SessionConfig config;
      config.label = name;
      config.seed = seed;
      const Arm& arm = arm_named(name, "--arms");
      if (!arm.leaky) {
        config.checkpoint =
            folder.file(options.duel.seeds > 1 ? fmt::format("{}-seed{}", name, seed) : name);
      }
      std::unique_ptr<Transformer> model;
      results.push_back(run_session(options, arm,
                                    answers_task(options, options.recall.vocab, batches), config,
                                    folder, mode, model));
      json["arms"].push_back(arm_json(results.back()));
      folder.write_summary(json);
      if (results.back().interrupted) {
        fmt::print("Interrupted; what was measured so far is in {}\n", folder.path());
        return kInterrupted;
      }
    }
  }
  fmt::print("{}", scores(results).text());
  if (!options.common.quiet) fmt::print("Written to {}\n", folder.path());
  return 0;
}

}  // namespace proteus
