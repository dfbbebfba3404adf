// How long a save holds training up: the stall of a save as a share of a training step, of a writer
// that takes its buffers when it needs them (every save is a first one) and of one that has
// prepared them, in turns within one process. On the clock, and in CPU time of the thread that
// trains: on a shared machine the clock measures its neighbours.
//
// usage: checkpoint_bench PRESET ARM THREADS SAVES [FOLDER]
// prints one JSON object per kind: the median, the 90th percentile and the worst of its saves.
// Checkpoints go to FOLDER (default: the folder of temporary files) and are removed.
#include <fmt/format.h>
#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <ctime>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "bench/random_batch.h"
#include "tensor/parallel.h"
#include "tensor/storage.h"
#include "train/checkpoint.h"
#include "train/models.h"
#include "train/trainer.h"

namespace proteus {
namespace {

constexpr std::int64_t kVocab = 65;
constexpr int kStepsOfATurn = 10;  // between two saves
constexpr int kWarmUp = 3;

/// The value that a share of the values is below.
double quantile(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  return values[static_cast<std::size_t>(share * static_cast<double>(values.size() - 1))];
}
double median(const std::vector<double>& values) { return quantile(values, 0.5); }

struct Times {
  std::vector<double> wall_ms = {};
  std::vector<double> cpu_ms = {};

  template <class F>
  void add(F&& work) {
    using Clock = std::chrono::steady_clock;
    const auto begin = Clock::now();
    const double cpu = cpu_seconds();
    work();
    cpu_ms.push_back((cpu_seconds() - cpu) * 1e3);
    wall_ms.push_back(std::chrono::duration<double, std::milli>(Clock::now() - begin).count());
  }

 private:
  static double cpu_seconds() {
    timespec time{};
    ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
  }
};

/// What was measured of one kind of writer.
struct Kind {
  const char* name;
  Times stalls = {};
  Times steps_while_writing = {};
};

/// Of stalls, as shares of the median step.
nlohmann::ordered_json shares(const std::vector<double>& stalls, double step_ms) {
  return {{"step_ms", step_ms},
          {"stall_ms", median(stalls)},
          {"median_share", median(stalls) / step_ms},
          {"share_90", quantile(stalls, 0.9) / step_ms},
          {"worst_share", quantile(stalls, 1) / step_ms}};
}

void print(const Kind& kind, const Times& steps, std::int64_t bytes) {
  fmt::print(
      "{}\n",
      nlohmann::ordered_json{{"buffers", kind.name},
                             {"saves", kind.stalls.wall_ms.size()},
                             {"checkpoint_bytes", bytes},
                             {"wall", shares(kind.stalls.wall_ms, median(steps.wall_ms))},
                             {"cpu", shares(kind.stalls.cpu_ms, median(steps.cpu_ms))},
                             {"step_ms_while_writing", median(kind.steps_while_writing.wall_ms)}}
          .dump());
}

int run(const std::string& preset, const std::string& arm, int threads, int saves,
        const std::string& folder) {
  set_num_threads(threads);
  const Options options = parse_options("duel", {"--preset", preset}).options;
  auto model = make_model(options, arm_named(arm, "arm"), kVocab, 1);
  TrainerConfig config;
  config.steps = 1 << 20;
  Trainer trainer(*model, config, [&](std::int64_t i) {
    return bench::random_batch(options.training.batch, options.model.context, kVocab, i);
  });
  const auto contents = [&] {
    return Checkpoint{"{}", trainer.state_json(), module_tensors(*model),
                      trainer.optimizer_tensors()};
  };
  Times steps;
  const auto turn = [&](CheckpointWriter& writer, Kind& kind) {
    kind.stalls.add([&] { writer.save(contents()); });
    bool writing = true;
    for (int i = 0; i < kStepsOfATurn; ++i) {
      writing = writing && writer.busy();
      (writing ? kind.steps_while_writing : steps).add([&] { trainer.step(); });
    }
    writer.finish();
  };
  for (int i = 0; i < kWarmUp; ++i) trainer.step();
  const std::string path = folder + "/checkpoint";
  Kind fresh{"fresh"}, prepared{"prepared"};
  CheckpointWriter kept(path, 1);
  kept.prepare(module_tensors(*model), trainer.optimizer_tensors());
  std::int64_t bytes = 0;
  for (int i = 0; i < saves; ++i) {
    {
      release_cached_memory();
      ::malloc_trim(0);
      trainer.step();  // takes again what it needs
      CheckpointWriter writer(path, 1);
      turn(writer, fresh);
    }
    turn(kept, prepared);
  }
  for (const auto& entry : std::filesystem::directory_iterator(path)) {
    bytes += static_cast<std::int64_t>(entry.file_size());
  }
  for (const Kind& kind : {fresh, prepared}) print(kind, steps, bytes);
  return 0;
}

}  // namespace
}  // namespace proteus

int main(int argc, char** argv) {
  if (argc < 5 || argc > 6) {
    fmt::print(stderr, "usage: checkpoint_bench PRESET ARM THREADS SAVES [FOLDER]\n");
    return 2;
  }
  namespace fs = std::filesystem;
  const fs::path folder = (argc > 5 ? fs::path(argv[5]) : fs::temp_directory_path()) /
                          ("proteus-checkpoint-bench-" + std::to_string(::getpid()));
  int code = 2;
  try {
    fs::create_directories(folder);
    code = proteus::run(argv[1], argv[2], std::stoi(argv[3]), std::max(1, std::stoi(argv[4])),
                        folder.string());
  } catch (const std::exception& error) {
    fmt::print(stderr, "checkpoint_bench: {}\n", error.what());
  }
  std::error_code ignored;
  fs::remove_all(folder, ignored);
  return code;
}
