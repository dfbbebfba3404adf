// GPT-2 in and out: a Hugging Face folder (config.json, model.safetensors, tokenizer files) as a
// dense model with learned positions and biases, and such a model as a folder again. Names and
// shapes are those of `transformers`; its Conv1D keeps matrices as [in, out], ours are [out, in].
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "train/models.h"

namespace proteus {

struct Gpt2 {
  SavedModel saved;  ///< arm dense; without a tokenizer where the folder has none
  std::unique_ptr<Transformer> model;
};

/// The dense model that a config.json of `transformers` describes. Throws FileError naming `source`
/// for what is no GPT-2 or another function than ours.
SavedModel parse_gpt2_config(std::string_view text, const std::string& source);

/// Reads a folder. Tensor names may begin with "transformer."; masks are left out, and an lm_head
/// must be the embedding again. `tokenizer` is "byte" or a path (see Tokenizer::from_path); empty
/// takes the folder's, where it has one. Throws FileError that says what to do for a missing file
/// or tensor, another shape, a tensor that GPT-2 has not, and a config of another function.
Gpt2 read_gpt2(const std::string& folder, const std::string& tokenizer);

/// Writes config.json, model.safetensors in f32 and, of a bpe tokenizer, tokenizer.json with
/// tokenizer_config.json. Biases that the model has not are zeros. Throws ConfigError for a model
/// that is no GPT-2, FileError where a file cannot be written.
void write_gpt2(const std::string& folder, const SavedModel& saved, const Transformer& model);

}  // namespace proteus
