// proteus sample: text from a checkpoint.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "train/commands.h"
#include "train/commands/model_file.h"
#include "train/commands/text.h"
#include "train/device.h"
#include "train/generate.h"

namespace proteus {

int run_sample(const Options& options) {
  const LoadedModel loaded = load_model(options.checkpoint.checkpoint);
  loaded.model->to(open_device(options.common.device));
  RunFolder folder(options);
  const Generated generated = generate(*loaded.model, loaded.tokenizer, options.sampling,
                                       static_cast<std::uint64_t>(options.common.seed));
  nlohmann::ordered_json json = summary_head(options);
  json["checkpoint"] = options.checkpoint.checkpoint;
  json["prompt"] = options.sampling.prompt;
  json["text"] = generated.text;
  json["control"] = nlohmann::ordered_json::array();
  for (const auto& d : generated.decisions) {
    json["control"].push_back({{"alpha", d.alpha}, {"window", d.window}, {"why", d.why}});
  }
  const AgreementSummary& a = generated.agreement;
  json["agreement"] = nullptr;
  if (a.count() > 0) json["agreement"] = {{"mean", a.mean()}, {"min", a.min()}, {"max", a.max()}};
  folder.write_summary(json);
  fmt::print("{}\n", generated.text);
  return 0;
}

}  // namespace proteus
