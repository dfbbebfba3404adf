#include "train/commands/model_file.h"

#include "tensor/error.h"
#include "train/checkpoint.h"
#include "train/gates.h"

namespace proteus {

LoadedModel load_model(const std::string& path) {
  const Checkpoint checkpoint = load_checkpoint(path);
  const SavedModel saved = parse_model_json(checkpoint.config, path);
  if (saved.tokenizer.empty()) {
    throw FileError(path + ": this checkpoint has no tokenizer; it was not trained on text");
  }
  LoadedModel loaded{nullptr, Tokenizer::from_json(saved.tokenizer, path), saved.options,
                     saved.arm};
  loaded.model = make_model(saved.options, arm_named(saved.arm, "arm"), saved.vocab, saved.seed);
  restore_model(*loaded.model, checkpoint.model, path);
  loaded.model->set_training(false);
  return loaded;
}

}  // namespace proteus
