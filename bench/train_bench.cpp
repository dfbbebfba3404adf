// The training step of a preset, to stand beside bench/peers/train_step.py: same model, same batch,
// random tokens, median over steps. Run the two in turn.
//
// usage: train_bench PRESET ARM THREADS SECONDS
// prints one JSON object: tokens_per_s, step_ms, peak_memory_bytes (resident memory that the model
// and its steps added) and live_peak_bytes (the allocator's own count).
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "bench/random_batch.h"
#include "tensor/parallel.h"
#include "train/memory.h"
#include "train/models.h"
#include "train/trainer.h"

namespace proteus {
namespace {

constexpr std::int64_t kVocab = 65;

int run(const std::string& preset, const std::string& arm, int threads, double seconds) {
  using Clock = std::chrono::steady_clock;
  set_num_threads(threads);
  const Options options = parse_options("duel", {"--preset", preset}).options;
  const std::int64_t before = peak_rss_bytes();
  auto model = make_model(options, arm_named(arm, "arm"), kVocab, 1);
  TrainerConfig config;
  config.steps = 1 << 20;
  Trainer trainer(*model, config, [&](std::int64_t i) {
    return bench::random_batch(options.training.batch, options.model.context, kVocab, i);
  });
  for (int i = 0; i < 2; ++i) trainer.step();
  std::vector<double> times;
  const auto begin = Clock::now();
  const auto elapsed = [&](Clock::time_point since) {
    return std::chrono::duration<double>(Clock::now() - since).count();
  };
  while (elapsed(begin) < seconds || times.size() < 3) {
    const auto start = Clock::now();
    trainer.step();
    times.push_back(elapsed(start));
  }
  std::sort(times.begin(), times.end());
  const double median = times[times.size() / 2];
  const auto tokens = static_cast<double>(options.training.batch * options.model.context);
  nlohmann::ordered_json json{{"framework", "proteus"},
                              {"preset", preset},
                              {"arm", arm},
                              {"threads", threads},
                              {"steps", times.size()},
                              {"step_ms", median * 1e3},
                              {"tokens_per_s", tokens / median},
                              {"peak_memory_bytes", peak_rss_bytes() - before},
                              {"live_peak_bytes", memory_stats(DeviceType::cpu).peak_bytes}};
  fmt::print("{}\n", json.dump());
  return 0;
}

}  // namespace
}  // namespace proteus

int main(int argc, char** argv) {
  if (argc != 5) {
    fmt::print(stderr, "usage: train_bench tiny|baby ARM THREADS SECONDS\n");
    return 2;
  }
  try {
    return proteus::run(argv[1], argv[2], std::stoi(argv[3]), std::stod(argv[4]));
  } catch (const std::exception& error) {
    fmt::print(stderr, "train_bench: {}\n", error.what());
    return 2;
  }
}
