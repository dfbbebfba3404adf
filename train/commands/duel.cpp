// proteus duel: trains every arm on the same data, seeds and budget, compares them, and samples
// from each.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "train/commands.h"
#include "train/commands/text.h"
#include "train/generate.h"

namespace proteus {
namespace {

struct Entry {
  RunResult result;
  std::string sample;
};

Table comparison(const std::vector<Entry>& entries, const Dataset& dataset) {
  Table table({"arm", "seed", "params", "steps", "train loss", "val loss", "best", "bits/byte",
               "tokens/s", "attn FLOP/token", "peak memory", "MaxVio", "of both roles"});
  for (const Entry& e : entries) {
    const RunResult& r = e.result;
    table.add_row(
        {shown_name(r), fmt::to_string(r.seed), format_count(static_cast<double>(r.params)),
         fmt::to_string(r.steps), format_number(r.train_loss), format_number(r.val_loss),
         format_number(r.best_val_loss), format_number(bits_per_byte(r.val_loss, dataset), 3),
         format_count(r.tokens_per_s), format_count(r.attention_flops_per_token),
         format_count(static_cast<double>(r.peak_memory_bytes)) + "B",
         format_routing(r.routing.eval_max_vio, 2),
         format_routing(r.routing.eval_max_vio_both, 2)});
  }
  return table;
}

nlohmann::ordered_json summary(const Options& options, const Dataset& dataset,
                               const std::vector<Entry>& entries) {
  nlohmann::ordered_json json = summary_head(options);
  json["data"] = data_json(dataset);
  json["arms"] = nlohmann::ordered_json::array();
  for (const Entry& e : entries) {
    nlohmann::ordered_json arm = arm_json(e.result);
    arm["val_bpb"] = bits_per_byte(e.result.val_loss, dataset);
    arm["sample"] = e.sample;
    json["arms"].push_back(arm);
  }
  return json;
}

}  // namespace

int run_duel(const Options& given) {
  const Dataset dataset = open_dataset(given);
  const Options options = resolved_for(given, dataset.tokens(Split::train));
  dataset.check_context(options.model.context);
  RunFolder folder(options);
  const ProgressMode mode = progress_mode(stdout, options.common.quiet);
  std::vector<Entry> entries;
  for (const std::string& name : options.duel.arms) {
    const Arm& arm = arm_named(name, "--arms");
    for (std::int64_t i = 0; i < options.duel.seeds; ++i) {
      const auto seed = static_cast<std::uint64_t>(options.common.seed + i);
      const Task task = text_task(options, dataset, seed);
      SessionConfig config;
      config.label = name;
      config.seed = seed;
      if (!arm.leaky) {
        config.checkpoint =
            folder.file(options.duel.seeds > 1 ? fmt::format("{}-seed{}", name, seed) : name);
      }
      std::unique_ptr<Transformer> model;
      Entry entry{run_session(options, arm, task, config, folder, mode, model), {}};
      if (entry.result.interrupted) {
        if (arm.leaky) {
          fmt::print("Interrupted; what was measured so far is in {}\n", folder.path());
          return kInterrupted;
        }
        return say_interrupted("proteus train --resume --checkpoint " + config.checkpoint);
      }
      model->to(kCpu);  // decoding runs there
      if (!arm.leaky) {
        entry.sample = generate(*model, dataset.tokenizer(), options.sampling, seed).text;
      }
      entries.push_back(std::move(entry));
      folder.write_summary(summary(options, dataset, entries));
    }
  }
  if (!options.common.quiet) {
    for (const Entry& e : entries) {
      if (!e.sample.empty()) fmt::print("\n--- {} ---\n{}\n", e.result.name, e.sample);
    }
    fmt::print("\n");
  }
  fmt::print("{}", comparison(entries, dataset).text());
  if (!options.common.quiet) fmt::print("Written to {}\n", folder.path());
  return 0;
}

}  // namespace proteus
