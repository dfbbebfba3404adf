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

/// Steps and their losses, as the lines of a metrics.jsonl have them; the last line may be torn.
std::vector<std::pair<std::int64_t, double>> losses(const TemporaryFolder& folder,
                                                    const std::string& run) {
  std::vector<std::pair<std::int64_t, double>> all;
  std::istringstream in(folder.read(run + "/metrics.jsonl"));
  for (std::string line; std::getline(in, line);) {
    const auto json = nlohmann::json::parse(line, nullptr, false);
    if (json.is_object() && json.contains("loss")) all.emplace_back(json["step"], json["loss"]);
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

/// A run that is killed again and again, and what was seen of it.
class KilledRun {
 public:
  explicit KilledRun(const TemporaryFolder& folder) : folder_(folder) {}

  /// Starts it, or goes on from its checkpoint, and kills it at a random moment: mostly while it
  /// trains and saves, sometimes while it starts or loads.
  void kill_once() {
    const Args start =
        step_ < 0 ? joined(kTraining, kLong)
                  : Args{"train",     "--resume", "--checkpoint", "run/checkpoint", "--quiet",
                         "--threads", "1"};
    const Args save = {"--checkpoint-every", "2", "--keep", "2", "--out", "run"};
    const Program program(folder_, joined(start, save));
    if (up_to(8) != 0) wait_for_growth(folder_.file("run/metrics.jsonl"), 2000);
    std::this_thread::sleep_for(std::chrono::microseconds(up_to(30000)));
    program.kill();
    const Outcome o = program.wait();
    ASSERT_EQ(o.code, 128 + SIGKILL) << o.err;
    look();
  }

  std::int64_t step() const { return step_; }  ///< of the newest checkpoint; −1 before the first
  /// Of every step that was logged, also those that a resumed run did again.
  const std::vector<std::pair<std::int64_t, double>>& seen() const { return seen_; }
  int lost = 0;      ///< checkpoints that did not load
  int saving = 0;    ///< kills while one was written beside its place
  int renaming = 0;  ///< kills between the renames that put it there

 private:
  int up_to(int n) { return static_cast<int>(random_() % static_cast<unsigned>(n)); }

  void look() {
    const std::string path = folder_.file("run/checkpoint");
    // A resumed run logs on behind its checkpoint's step; one that died sooner left all as it was.
    const auto lines = losses(folder_, "run");
    for (const auto& line : lines) {
      if (line.first > step_ && lines != lines_) seen_.push_back(line);
    }
    lines_ = lines;
    saving += fs::exists(path + ".new") ? 1 : 0;
    if (!fs::exists(path)) {
      if (step_ < 0 && !fs::exists(path + ".1")) return;
      ++renaming;
    }
    load(path);
    if (fs::exists(path) && fs::exists(path + ".1")) load(path + ".1");
  }

  void load(const std::string& path) {
    try {
      const Checkpoint c = load_checkpoint(path);
      const std::int64_t now = parse_trainer_state(c.state, path).step;
      if (path.ends_with(".1")) {
        EXPECT_LT(now, step_);
      } else {
        EXPECT_GE(now, step_);
        step_ = now;
      }
    } catch (const Error& error) {
      ADD_FAILURE() << error.what();
      ++lost;
    }
  }

  const TemporaryFolder& folder_;
  std::minstd_rand random_{12345};
  std::int64_t step_ = -1;
  std::vector<std::pair<std::int64_t, double>> lines_, seen_;
};

/// The losses of one run that nobody disturbs, by step, up to `last` at least.
std::map<std::int64_t, double> undisturbed_losses(const TemporaryFolder& folder,
                                                  std::int64_t last) {
  const Program whole(folder, joined(joined(kTraining, kLong), {"--out", "whole"}));
  while (losses(folder, "whole").size() < static_cast<std::size_t>(last)) {
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
  }
  whole.kill();
  whole.wait();
  const auto all = losses(folder, "whole");
  return {all.begin(), all.end()};
}

// Gates are operated on at every seventh step, so that many of the checkpoints come right after it.
TEST(Reliability, KilledRunsGoOnAsIfTheyHadNotBeen) {
  const char* wanted = std::getenv("PROTEUS_KILLS");
  const int kills = wanted ? std::atoi(wanted) : 8;
  const TemporaryFolder folder;
  folder.write("text", testing::some_text(4000));
  KilledRun run(folder);
  for (int i = 0; i < kills && !HasFatalFailure(); ++i) run.kill_once();
  ASSERT_GT(run.step(), 0);
  std::int64_t last = 0;
  for (const auto& [step, loss] : run.seen()) last = std::max(last, step);
  const auto expected = undisturbed_losses(folder, last);
  std::int64_t equal = 0;
  for (const auto& [step, loss] : run.seen()) {
    EXPECT_EQ(loss, expected.at(step)) << "step " << step;
    equal += loss == expected.at(step) ? 1 : 0;
  }
  std::printf(
      "%d kills, %d of them while a checkpoint was written, %d between its renames: %d checkpoints "
      "lost; step %lld reached; %lld of %zu losses as in an undisturbed run, bit for bit\n",
      kills, run.saving, run.renaming, run.lost, static_cast<long long>(run.step()),
      static_cast<long long>(equal), run.seen().size());
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
