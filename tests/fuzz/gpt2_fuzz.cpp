// config.json of a Hugging Face folder: what is taken describes a model that can be written as
// ours.
#include "tests/fuzz/fuzz.h"
#include "train/gpt2.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace proteus;
  const auto saved =
      fuzz::accepted([&] { return parse_gpt2_config(fuzz::text_of(data, size), "fuzz"); });
  if (!saved) return 0;
  const std::string written = model_json(*saved);
  fuzz::require(model_json(parse_model_json(written, "again")) == written);
  fuzz::require(parameters_about(saved->options, arm_named(saved->arm, "arm"), saved->vocab) >= 0);
  return 0;
}
