// A model from a checkpoint, ready to be evaluated or sampled from.
#pragma once

#include <memory>
#include <string>

#include "train/models.h"
#include "train/tokenizer.h"

namespace proteus {

struct LoadedModel {
  std::unique_ptr<Transformer> model;  ///< in evaluation mode
  Tokenizer tokenizer;
  Options options;
  std::string arm;
};

/// Throws FileError when the checkpoint is missing, damaged or has no tokenizer.
LoadedModel load_model(const std::string& checkpoint);

}  // namespace proteus
