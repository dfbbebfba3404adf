// proteus train: one model, with checkpoints.
#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <optional>

#include "tensor/error.h"
#include "train/checkpoint.h"
#include "train/commands.h"
#include "train/commands/text.h"

namespace proteus {

int run_train(const Options& given) {
  Options options = given;
  std::int64_t resumed_step = -1;
  std::optional<Tokenizer> tokenizer;
  std::int64_t vocab = 0;
  if (options.checkpoint.resume) {
    const std::string path = options.checkpoint.checkpoint.empty()
                                 ? options.common.out + "/checkpoint"
                                 : options.checkpoint.checkpoint;
    check_resumable(path);
    const SavedModel saved =
        parse_model_json(load_checkpoint(path, CheckpointPart::texts).config, path);
    Options start = saved.options;
    start.checkpoint.model = saved.arm;
    start.common.seed = static_cast<std::int64_t>(saved.seed);
    options = resumed(start, given);
    options.checkpoint.checkpoint = path;
    resumed_step = checkpoint_step(path);
    if (saved.tokenizer.empty()) {
      throw FileError(path + ": this checkpoint has no tokenizer; it was not trained on text");
    }
    tokenizer = Tokenizer::from_json(saved.tokenizer, path);
    vocab = saved.vocab;
  }
  const Dataset dataset = tokenizer ? open_dataset(options, *tokenizer) : open_dataset(options);
  options = resolved_for(options, dataset.tokens(Split::train));
  dataset.check_context(options.model.context);
  RunFolder folder(options, resumed_step);
  SessionConfig config;
  config.label = options.checkpoint.model;
  config.seed = static_cast<std::uint64_t>(options.common.seed);
  config.checkpoint = checkpoint_path(options, folder);
  config.resume = options.checkpoint.resume;
  Task task = text_task(options, dataset, config.seed);
  task.vocab = std::max(task.vocab, vocab);  // a model may have more ids than its tokenizer
  std::unique_ptr<Transformer> model;
  const RunResult result =
      run_session(options, arm_named(options.checkpoint.model, "--model"), task, config, folder,
                  progress_mode(stdout, options.common.quiet), model);
  nlohmann::ordered_json json = summary_head(options);
  json["data"] = data_json(dataset);
  nlohmann::ordered_json arm = arm_json(result);
  arm["val_bpb"] = bits_per_byte(result.val_loss, dataset);
  json["arms"] = nlohmann::ordered_json::array({arm});
  json["checkpoint"] = config.checkpoint;
  folder.write_summary(json);
  if (result.interrupted) {
    return say_interrupted(fmt::format("proteus train --resume --checkpoint {} --out {}",
                                       config.checkpoint, folder.path()));
  }
  Table table({"model", "params", "steps", "train loss", "val loss", "bits/byte", "tokens/s",
               "peak memory", "checkpoint"});
  table.add_row(
      {result.name, format_count(static_cast<double>(result.params)), fmt::to_string(result.steps),
       format_number(result.train_loss), format_number(result.val_loss),
       format_number(bits_per_byte(result.val_loss, dataset), 3), format_count(result.tokens_per_s),
       format_count(static_cast<double>(result.peak_memory_bytes)) + "B", config.checkpoint});
  fmt::print("{}", table.text());
  return 0;
}

}  // namespace proteus
