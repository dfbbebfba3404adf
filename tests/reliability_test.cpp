// Runs that are killed at random moments, and runs whose memory ends at every allocation there is.
// PROTEUS_KILLS sets the number of kills (docs/reliability.md has the figures of a long study).
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>
#include <thread>

#include "tensor/error.h"
#include "tensor/storage.h"
#include "tests/program.h"
#include "tests/temporary_folder.h"
#include "train/checkpoint.h"
#include "train/models.h"
#include "train/trainer.h"

namespace proteus {
namespace {

namespace fs = std::filesystem;
using testing::Args;
using testing::joined;
using testing::Outcome;
using testing::Program;
using testing::TemporaryFolder;

/// Losses by step, as the lines of a metrics.jsonl have them; the last line may be torn.
std::map<std::int64_t, double> losses(const TemporaryFolder& folder, const std::string& run) {
  std::map<std::int64_t, double> all;
  std::istringstream in(folder.read(run + "/metrics.jsonl"));
  for (std::string line; std::getline(in, line);) {
    const auto json = nlohmann::json::parse(line, nullptr, false);
    if (json.is_object() && json.contains("loss")) all[json["step"]] = json["loss"];
  }
  return all;
}

std::uintmax_t size_of_file(const std::string& path) {
  std::error_code error;
  const auto bytes = fs::file_size(path, error);
  return error ? 0 : bytes;
}

const Args kTraining = {"train",
                        "--model",
                        "aspa",
                        "--layers",
                        "1",
                        "--width",
                        "32",
                        "--batch",
                        "2",
                        "--threads",
                        "1",
                        "--quiet",
                        "--data",
                        "text",
                        "--context",
                        "16",
                        "--dropout",
                        "0.1",
                        "--eval-every",
                        "0",
                        "--log-every",
                        "1",
                        "--gate-every",
                        "7"};
// Longer than it ever gets, so that learning rates are those of one long run.
const Args kLong = {"--steps", "100000"};

/// Waits until a file has grown by `bytes`, at most ten seconds.
void wait_for_growth(const std::string& path, std::uintmax_t bytes) {
  const std::uintmax_t before = size_of_file(path);
  for (int i = 0; i < 10000 && size_of_file(path) < before + bytes; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

// Gates are operated on at every seventh step, so that many of the checkpoints come right after it.
TEST(Reliability, KilledRunsGoOnAsIfTheyHadNotBeen) {
  const char* wanted = std::getenv("PROTEUS_KILLS");
  const int kills = wanted ? std::atoi(wanted) : 8;
  const TemporaryFolder folder;
  folder.write("text", testing::some_text(4000));
  std::minstd_rand random(12345);
  const auto up_to = [&](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
  const Args save = {"--checkpoint-every", "2", "--keep", "2", "--out", "run"};
  std::int64_t step = -1;  // of the newest checkpoint
  int lost = 0;
  for (int i = 0; i < kills; ++i) {
    const Args start =
        step < 0 ? joined(kTraining, kLong)
                 : Args{"train",     "--resume", "--checkpoint", "run/checkpoint", "--quiet",
                        "--threads", "1"};
    const Program program(folder, joined(start, save));
    // Mostly while it trains and saves, sometimes while it starts or loads.
    if (up_to(8) != 0) wait_for_growth(folder.file("run/metrics.jsonl"), 2000);
    std::this_thread::sleep_for(std::chrono::microseconds(up_to(30000)));
    program.kill();
    const Outcome o = program.wait();
    ASSERT_EQ(o.code, 128 + SIGKILL) << o.err;
    if (step < 0 && !fs::exists(folder.file("run/checkpoint"))) continue;
    try {
      const Checkpoint c = load_checkpoint(folder.file("run/checkpoint"));
      const std::int64_t now = parse_trainer_state(c.state, "run").step;
      EXPECT_GE(now, step) << "kill " << i;
      step = now;
    } catch (const Error& error) {
      ADD_FAILURE() << "kill " << i << ": " << error.what();
      ++lost;
    }
  }
  ASSERT_GT(step, 0);
  // One run that nobody disturbs has the same losses, bit for bit.
  const Program whole(folder, joined(joined(kTraining, kLong), {"--out", "whole"}));
  const auto reached = losses(folder, "run");
  const std::int64_t last = std::min(step, reached.rbegin()->first);
  while (losses(folder, "whole").size() < static_cast<std::size_t>(last)) {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  whole.kill();
  whole.wait();
  const auto expected = losses(folder, "whole");
  std::int64_t compared = 0;
  for (const auto& [s, loss] : reached) {
    if (s > last) break;
    EXPECT_EQ(loss, expected.at(s)) << "step " << s;
    ++compared;
  }
  std::printf("%d kills, %d checkpoints lost, step %lld reached, %lld losses compared\n", kills,
              lost, static_cast<long long>(step), static_cast<long long>(compared));
}

// A checkpoint whose hashes are right and whose numbers are not.
TEST(Reliability, WeightsThatAreNoNumbersAreToldAsSuch) {
  const TemporaryFolder folder;
  folder.write("text", testing::some_text(4000));
  ASSERT_EQ(testing::run(folder, joined(kTraining, {"--steps", "2", "--out", "run"})).code, 0);
  const std::string path = folder.file("run/checkpoint");
  const Checkpoint saved = load_checkpoint(path);
  saved.model[0].second.fill_(NAN);
  save_checkpoint(path, saved);
  const Args of_it = {"--checkpoint", "run/checkpoint"};
  for (const Args& command :
       {Args{"eval", "--data", "text", "--out", "e"}, Args{"sample", "--out", "s"},
        Args{"train", "--resume", "--steps", "9", "--quiet", "--out", "run"}}) {
    const Outcome o = testing::run(folder, joined(command, of_it));
    EXPECT_EQ(o.code, 5) << command[0] << ": " << o.err << o.out;
    EXPECT_EQ(std::count(o.err.begin(), o.err.end(), '\n'), 1) << o.err;
  }
}

std::atomic<long> calls = 0;
constexpr long kNever = -2;
std::atomic<long> failing_call = kNever;  ///< it and the next: what fails once is tried once more
DeviceHooks system_hooks;

void* failing_allocate(std::size_t bytes, int index) {
  const long call = ++calls;
  if (call == failing_call || call == failing_call + 1) {
    throw OutOfMemory("allocation made to fail");
  }
  return system_hooks.allocate(bytes, index);
}

/// A little of everything: a model, two steps, an evaluation, a checkpoint, a resumed step.
void small_run(const std::string& path) {
  const Options o = parse_options("duel", {"--layers", "1", "--width", "16", "--head-width", "8",
                                           "--context", "8", "--routed-heads", "3", "--k", "2",
                                           "--routing-width", "8", "--dropout", "0.1"})
                        .options;
  const auto batch = [](std::int64_t i) {
    const auto draw = [&](std::uint64_t stream) {
      return Tensor::rand({2, 8}, {static_cast<std::uint64_t>(i), stream}, DType::f64, 0, 11)
          .to(DType::i32);
    };
    return Batch{draw(1), draw(2)};
  };
  const auto model = make_model(o, arm_named("aspa", "arm"), 11, 1);
  TrainerConfig config;
  config.steps = 3;
  Trainer trainer(*model, config, batch);
  trainer.step();
  trainer.step();
  evaluate(*model, batch, 1);
  CheckpointWriter writer(path, 1);
  writer.save({"{}", trainer.state_json(), module_tensors(*model), trainer.optimizer_tensors()});
  writer.finish();
  const Checkpoint saved = load_checkpoint(path);
  restore_module(*model, saved.model, path);
  trainer.restore(saved.optimizer, saved.state, path);
  trainer.step();
}

TEST(Reliability, WhereverMemoryEndsItIsATypedErrorAndNothingLeaks) {
  const TemporaryFolder folder;
  const std::string path = folder.file("c");
  small_run(path);  // what is made once stays
  const std::int64_t live = memory_stats(DeviceType::cpu).live_bytes;
  system_hooks = device_hooks(DeviceType::cpu);
  DeviceHooks hooks = system_hooks;
  hooks.allocate = failing_allocate;
  install_device(DeviceType::cpu, hooks);
  const auto calls_of = [&](long failing) {
    release_cached_memory();  // every block comes from the system again
    calls = 0;
    failing_call = failing;
    bool failed = false;
    try {
      small_run(path);
    } catch (const OutOfMemory&) {
      failed = true;
    }
    const long made = calls;  // before the checks below, which allocate where there is no cache
    failing_call = kNever;
    EXPECT_EQ(failed, failing > 0) << "allocation " << failing;
    EXPECT_EQ(memory_stats(DeviceType::cpu).live_bytes, live) << "allocation " << failing;
    EXPECT_NO_THROW(load_checkpoint(path)) << "allocation " << failing;
    return made;
  };
  const long all = calls_of(kNever);
  // With the cache, all of them; under AddressSanitizer, which has none, a part.
  constexpr long kMost = 400;
  const long stride = (all + kMost - 1) / kMost;
  long failures = 0;
  for (long n = 1; n <= all; n += stride, ++failures) calls_of(n);
  install_device(DeviceType::cpu, system_hooks);
  EXPECT_GT(failures, 50);
  std::printf("%ld of %ld allocations made to fail\n", failures, all);
}

}  // namespace
}  // namespace proteus
