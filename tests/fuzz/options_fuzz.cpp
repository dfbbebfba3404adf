// Options in TOML, as --config reads them: what is taken writes itself back to the same.
#include "tests/fuzz/fuzz.h"
#include "train/options.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace proteus;
  const std::string text(fuzz::text_of(data, size));
  const auto options =
      fuzz::accepted([&] { return options_from_text("train", text, "fuzz.toml"); });
  if (!options) return 0;
  const std::string written = config_text(*options);
  fuzz::require(config_text(options_from_text("train", written, "again")) == written);
  return 0;
}
