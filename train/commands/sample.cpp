// proteus sample: text from a checkpoint.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "train/commands.h"
#include "train/commands/model_file.h"
#include "train/commands/text.h"

namespace proteus {

int run_sample(const Options& options) {
  const LoadedModel loaded = load_model(options.checkpoint.checkpoint);
  RunFolder folder(options);
  const std::string text = generate(*loaded.model, loaded.tokenizer, options.sampling,
                                    static_cast<std::uint64_t>(options.common.seed));
  nlohmann::ordered_json json = summary_head(options);
  json["checkpoint"] = options.checkpoint.checkpoint;
  json["prompt"] = options.sampling.prompt;
  json["text"] = text;
  folder.write_summary(json);
  fmt::print("{}\n", text);
  return 0;
}

}  // namespace proteus
