#include "train/commands/text.h"

#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "tensor/error.h"
#include "tensor/parallel.h"
#include "train/corpus.h"
#include "train/device.h"
#include "train/mapped_file.h"

namespace proteus {
namespace {

void say_built_in(const Options& options) {
  if (options.common.quiet) return;
  fmt::print(
      "No --data given: training on the built-in synthetic stories. scripts/get_data fetches Tiny "
      "Shakespeare.\n");
}

// A tokenizer of the wanted kind made from a text.
Tokenizer tokenizer_of(const DataOptions& options, std::string_view text,
                       const std::string& source) {
  if (options.tokenizer == "byte") return Tokenizer::bytes();
  if (options.tokenizer == "bpe") return Tokenizer::of(Bpe::train(text, options.vocab_size));
  return Tokenizer::chars_of(text, source);
}

}  // namespace

Dataset open_dataset(const Options& options) {
  const std::string& kind = options.data.tokenizer;
  const std::string& file = options.data.file;
  const bool named = kind != "char" && kind != "byte" && kind != "bpe";
  if (named) return open_dataset(options, Tokenizer::from_path(kind));
  if (!file.empty() && is_shard_path(file)) {
    const std::string beside = tokenizer_beside(file);
    if (beside.empty()) {
      throw FileError(fmt::format(
          "{}: expected the ids' tokenizer.json beside the shards, or --tokenizer PATH", file));
    }
    return Dataset::from_shards(file, Tokenizer::from_path(beside));
  }
  const auto make = [&](std::string_view text, const std::string& source) {
    return Dataset::from_text(text, tokenizer_of(options.data, text, source), source);
  };
  if (!file.empty()) return make(MappedFile(file).view(), file);
  say_built_in(options);
  return make(synthetic_corpus(), kBuiltInText);
}

Dataset open_dataset(const Options& options, const Tokenizer& tokenizer) {
  const std::string& file = options.data.file;
  if (file.empty()) {
    say_built_in(options);
    return Dataset::from_text(synthetic_corpus(), tokenizer, kBuiltInText);
  }
  if (!is_shard_path(file)) return Dataset::from_file(file, tokenizer);
  const std::string beside = tokenizer_beside(file);
  if (!beside.empty() && !(Tokenizer::from_path(beside) == tokenizer)) {
    throw FileError(fmt::format("{}: the shards beside it were made by another tokenizer", beside));
  }
  return Dataset::from_shards(file, tokenizer);
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
