// What telemetry costs: training steps of preset tiny, ASPA, that measure and log their routing
// against steps that do not, in turns within one process. Each turn is ten steps, of which the last
// is logged. Times are the process's CPU time: on a shared machine the clock on the wall measures
// its neighbours.
//
// usage: telemetry_bench ROUNDS
// prints one JSON object per round and one of the medians.
#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "bench/random_batch.h"
#include "tensor/parallel.h"
#include "train/models.h"
#include "train/report.h"
#include "train/routing_log.h"
#include "train/trainer.h"

namespace proteus {
namespace {

constexpr std::int64_t kVocab = 65;
constexpr int kStepsOfATurn = 10;  // --log-every of the preset
constexpr int kTurnsOfARound = 8;

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

int run(int rounds) {
  set_num_threads(1);
  const Options options = parse_options("duel", {"--preset", "tiny"}).options;
  auto model = make_model(options, arm_named("aspa", "arm"), kVocab, 1);
  TrainerConfig config;
  config.steps = 1 << 20;
  Trainer trainer(*model, config, [&](std::int64_t i) {
    return bench::random_batch(options.training.batch, options.model.context, kVocab, i);
  });
  RoutingLog log;
  std::size_t written = 0;
  const auto turn = [&](bool telemetry) {
    for (const GatedPart& part : gated_parts(*model)) {
      if (Gating* gates = part.gated->gates()) gates->set_telemetry(telemetry);
    }
    const std::clock_t begin = std::clock();
    for (int i = 0; i < kStepsOfATurn; ++i) trainer.step();
    if (telemetry) written += json_text(log.line(*model)).size();
    return static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC * 1e3 / kStepsOfATurn;
  };
  turn(true);
  std::vector<double> ratios;
  for (int round = 0; round < rounds; ++round) {
    std::vector<double> with;
    std::vector<double> without;
    for (int i = 0; i < kTurnsOfARound; ++i) {
      // Either kind comes first as often as the other.
      if (i % 2 == 0) with.push_back(turn(true));
      without.push_back(turn(false));
      if (i % 2 != 0) with.push_back(turn(true));
    }
    ratios.push_back(median(with) / median(without));
    const nlohmann::ordered_json json{{"round", round},
                                      {"step_ms_with", median(with)},
                                      {"step_ms_without", median(without)},
                                      {"ratio", ratios.back()}};
    fmt::print("{}\n", json.dump());
  }
  const nlohmann::ordered_json json{
      {"rounds", rounds},
      {"median_ratio", median(ratios)},
      {"bytes_of_a_line", written / static_cast<std::size_t>(1 + rounds * kTurnsOfARound)}};
  fmt::print("{}\n", json.dump());
  return 0;
}

}  // namespace
}  // namespace proteus

int main(int argc, char** argv) {
  if (argc != 2) {
    fmt::print(stderr, "usage: telemetry_bench ROUNDS\n");
    return 2;
  }
  try {
    return proteus::run(std::max(1, std::stoi(argv[1])));
  } catch (const std::exception& error) {
    fmt::print(stderr, "telemetry_bench: {}\n", error.what());
    return 2;
  }
}
