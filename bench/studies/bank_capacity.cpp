// What a bank holds. Reads models that `proteus recall --task stream` trained with a bank, and
// prints, as Markdown, the share of queries each answers against the number of pairs in its stream
// and the number of slots of a head. Slots have no parameters: the same model runs with any number
// of them.
//
// usage: bank_study DEVICE LENGTH LABEL=CHECKPOINT...    (bench/studies/bank_capacity trains them
// and calls this)
#include <fmt/format.h>

#include <array>
#include <string>

#include "tensor/error.h"
#include "train/checkpoint.h"
#include "train/device.h"
#include "train/gates.h"
#include "train/models.h"
#include "train/recall_score.h"

namespace proteus {
namespace {

constexpr std::array<std::int64_t, 5> kPairs = {16, 32, 64, 128, 256};
constexpr std::array<std::int64_t, 5> kSlots = {0, 32, 64, 128, 256};
constexpr std::int64_t kQueries = 1024;  // of every figure, at least
constexpr std::int64_t kRows = 8;        // sequences at a time

double accuracy(Device device, std::int64_t length, const std::string& path, std::int64_t slots,
                std::int64_t pairs) {
  const Checkpoint checkpoint = load_checkpoint(path, CheckpointPart::model);
  SavedModel saved = parse_model_json(checkpoint.config, path);
  saved.options.aspa.bank_slots = slots;
  saved.options.recall.pairs = pairs;
  saved.options.recall.shortest = 0;
  saved.options.model.context = length;
  const auto model =
      make_model(saved.options, arm_named(saved.arm, "arm"), saved.vocab, saved.seed);
  restore_model(*model, checkpoint.model, path);
  model->to(device);
  const RecallTask task(recall_config(saved.options, saved.seed));
  const auto batches = [&task](RecallSplit split, std::uint64_t index, std::int64_t rows) {
    return task.batch(split, index, rows);
  };
  return recall_accuracy(*model, batches, (kQueries + kRows * pairs - 1) / (kRows * pairs), kRows);
}

void print_table(Device device, std::int64_t length, const std::string& label,
                 const std::string& path) {
  fmt::print("\n{}\n\n| pairs |", label);
  for (const std::int64_t slots : kSlots) fmt::print(" {} |", slots);
  fmt::print("\n|---|");
  for ([[maybe_unused]] const std::int64_t slots : kSlots) fmt::print("---|");
  for (const std::int64_t pairs : kPairs) {
    fmt::print("\n| {} |", pairs);
    for (const std::int64_t slots : kSlots)
      fmt::print(" {:.4f} |", accuracy(device, length, path, slots, pairs));
  }
  fmt::print("\n");
}

}  // namespace
}  // namespace proteus

int main(int argc, char** argv) {
  try {
    if (argc < 4) throw proteus::ConfigError("usage: bank_study DEVICE LENGTH LABEL=CHECKPOINT...");
    const proteus::Device device = proteus::open_device(argv[1]);
    const std::int64_t length = std::stoll(argv[2]);
    for (int i = 3; i < argc; ++i) {
      const std::string text = argv[i];
      const auto equals = text.find('=');
      if (equals == std::string::npos) {
        throw proteus::ConfigError("expected LABEL=CHECKPOINT, got '" + text + "'");
      }
      proteus::print_table(device, length, text.substr(0, equals), text.substr(equals + 1));
    }
    return 0;
  } catch (const std::exception& error) {
    fmt::print(stderr, "bank_study: {}\n", error.what());
    return 2;
  }
}
