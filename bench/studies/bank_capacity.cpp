// What a bank holds. Reads models that `proteus recall --task stream` trained with a bank, and
// prints, as Markdown, the share of queries each answers against the number of pairs in its stream
// and the number of slots of a head. Slots have no parameters: the same model runs with any number
// of them.
//
// usage: bank_study LABEL=CHECKPOINT...    (bench/studies/bank_capacity trains them and calls this)
#include <fmt/format.h>

#include <array>
#include <string>

#include "tensor/error.h"
#include "train/checkpoint.h"
#include "train/gates.h"
#include "train/models.h"
#include "train/recall_score.h"

namespace proteus {
namespace {

constexpr std::array<std::int64_t, 5> kPairs = {16, 32, 64, 128, 256};
constexpr std::array<std::int64_t, 5> kSlots = {0, 32, 64, 128, 256};
constexpr std::int64_t kQueries = 2048;  // of every figure, at least

double accuracy(const std::string& path, std::int64_t slots, std::int64_t pairs) {
  const Checkpoint checkpoint = load_checkpoint(path);
  SavedModel saved = parse_model_json(checkpoint.config, path);
  saved.options.aspa.bank_slots = slots;
  saved.options.recall.pairs = pairs;
  const auto model =
      make_model(saved.options, arm_named(saved.arm, "arm"), saved.vocab, saved.seed);
  restore_model(*model, checkpoint.model, path);
  return recall_accuracy(*model, RecallTask(recall_config(saved.options, saved.seed)),
                         (kQueries + pairs - 1) / pairs, 1);
}

void print_table(const std::string& label, const std::string& path) {
  fmt::print("\n{}\n\n| pairs |", label);
  for (const std::int64_t slots : kSlots) fmt::print(" {} |", slots);
  fmt::print("\n|---|");
  for ([[maybe_unused]] const std::int64_t slots : kSlots) fmt::print("---|");
  for (const std::int64_t pairs : kPairs) {
    fmt::print("\n| {} |", pairs);
    for (const std::int64_t slots : kSlots) fmt::print(" {:.4f} |", accuracy(path, slots, pairs));
  }
  fmt::print("\n");
}

}  // namespace
}  // namespace proteus

int main(int argc, char** argv) {
  try {
    if (argc < 2) throw proteus::ConfigError("usage: bank_study LABEL=CHECKPOINT...");
    for (int i = 1; i < argc; ++i) {
      const std::string text = argv[i];
      const auto equals = text.find('=');
      if (equals == std::string::npos) {
        throw proteus::ConfigError("expected LABEL=CHECKPOINT, got '" + text + "'");
      }
      proteus::print_table(text.substr(0, equals), text.substr(equals + 1));
    }
    return 0;
  } catch (const std::exception& error) {
    fmt::print(stderr, "bank_study: {}\n", error.what());
    return 2;
  }
}
