// manifest.json and state.json of a checkpoint.
#include "tests/fuzz/fuzz.h"
#include "train/checkpoint.h"
#include "train/trainer.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace proteus;
  const std::string text(fuzz::text_of(data, size));
  fuzz::accepts([&] {
    const auto stamps = parse_manifest(text, "fuzz.json");
    fuzz::require(stamps.size() == 4);
  });
  fuzz::accepts([&] {
    const TrainerState state = parse_trainer_state(text, "fuzz");
    fuzz::require(state.step >= 0 && state.batches >= 0);
  });
  return 0;
}
