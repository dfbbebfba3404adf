#include "train/commands/text.h"

#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "tensor/error.h"
#include "tensor/parallel.h"
#include "train/corpus.h"
#include "train/device.h"

namespace proteus {
namespace {

constexpr const char* kBuiltIn = "built-in text";

void say_built_in(const Options& options) {
  if (options.common.quiet) return;
  fmt::print(
      "No --data given: training on the built-in synthetic stories. scripts/get_data fetches Tiny "
      "Shakespeare.\n");
}

}  // namespace

Dataset open_dataset(const Options& options) {
  const TokenizerKind kind =
      options.data.tokenizer == "byte" ? TokenizerKind::bytes : TokenizerKind::chars;
  if (!options.data.file.empty()) return Dataset::from_file(options.data.file, kind);
  say_built_in(options);
  return Dataset::from_text(synthetic_corpus(), kind, kBuiltIn);
}

Dataset open_dataset(const Options& options, const Tokenizer& tokenizer) {
  if (!options.data.file.empty()) return Dataset::from_file(options.data.file, tokenizer);
  say_built_in(options);
  return Dataset::from_text(synthetic_corpus(), tokenizer, kBuiltIn);
}

Options resolved_for(const Options& options, std::int64_t train_tokens) {
  open_device(options.common.device);  // before anything is written
  Options resolved = options;
  resolved.training.steps = training_steps(options.training, options.model.context, train_tokens);
  resolved.training.epochs = 0;
  return resolved;
}

nlohmann::ordered_json data_json(const Dataset& dataset) {
  return {{"file", dataset.source()},
          {"bytes", dataset.bytes()},
          {"tokens", dataset.tokens()},
          {"vocab", dataset.tokenizer().vocab()}};
}

nlohmann::ordered_json summary_head(const Options& options) {
  return {
      {"command", options.command}, {"device", options.common.device}, {"threads", num_threads()}};
}

double bits_per_byte(double loss, const Dataset& dataset) {
  return loss / (std::log(2.0) * dataset.bytes_per_target(Split::validation));
}

std::string checkpoint_path(const Options& options, const RunFolder& folder) {
  if (!options.checkpoint.checkpoint.empty()) return options.checkpoint.checkpoint;
  return folder.file("checkpoint");
}

int say_interrupted(const std::string& resume_command) {
  fmt::print("Interrupted; the state is saved. To go on:\n  {}\n", resume_command);
  return 130;
}

}  // namespace proteus
