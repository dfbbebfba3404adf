// config.json of a checkpoint: what is taken writes itself back to the same.
#include "tests/fuzz/fuzz.h"
#include "train/models.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace proteus;
  const std::string text(fuzz::text_of(data, size));
  const auto saved = fuzz::accepted([&] { return parse_model_json(text, "fuzz"); });
  if (!saved) return 0;
  const std::string written = model_json(*saved);
  fuzz::require(model_json(parse_model_json(written, "again")) == written);
  fuzz::require(parameters_about(saved->options, arm_named(saved->arm, "arm"), saved->vocab) >= 0);
  return 0;
}
