#include "train/commands/model_file.h"

#include <fmt/format.h>

#include "tensor/error.h"
#include "train/checkpoint.h"
#include "train/gates.h"

namespace proteus {

LoadedModel load_model(const std::string& path) {
  const Checkpoint checkpoint = load_checkpoint(path, CheckpointPart::model);
  const SavedModel saved = parse_model_json(checkpoint.config, path);
  if (saved.tokenizer.empty()) {
    throw FileError(path + ": this checkpoint has no tokenizer; it was not trained on text");
  }
  if (arm_named(saved.arm, "arm").leaky) {
    throw ConfigError(fmt::format(
        "--checkpoint {}: expected a causal model, got '{}', which selects with the whole sequence "
        "in view; only duel and recall measure it",
        path, saved.arm));
  }
  LoadedModel loaded{nullptr, Tokenizer::from_json(saved.tokenizer, path), saved.options,
                     saved.arm};
  loaded.model = saved_model(saved, checkpoint.model, path);
  loaded.model->set_training(false);
  return loaded;
}

}  // namespace proteus
