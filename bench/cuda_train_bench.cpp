// Training steps on a GPU: GPT-2 124M (12 layers, width 768, context 1,024, vocabulary 50,304,
// 32 sequences) and `baby` (6 layers, width 384, context 256, 64 sequences, dropout 0.2), dense and
// ASPA. bench/peers/train_step.py --device cuda measures PyTorch's dense steps of the same models.
//   cuda_train_bench [--model gpt2|baby] [--arm ARM] [--dtype bf16|f32] [--steps N] [--by-slot]
//   [--eager]
// Random tokens, everything that `proteus train` does in a step. tokens/s is over N steps after a
// warm-up, GB the most that tensors had at once, the steps of the warm-up included (memory of a
// recorded step is counted while it is recorded), TFLOP/s three times the forward products of the
// model (causal pairs only). --by-slot times every kernel call of one step on its own instead;
// --eager queues every step anew where it would be replayed.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "bench/program_options.h"
#include "bench/random_batch.h"
#include "bench/slot_times.h"
#include "cuda/device.h"
#include "tensor/storage.h"
#include "train/models.h"
#include "train/trainer.h"

namespace proteus::bench {
namespace {

constexpr int kWarmup = 5;
constexpr std::int64_t kBatches = 4;  // made once: drawing them is not part of a step

struct Model {
  const char* name;
  std::int64_t vocab;
  std::vector<std::string> options;
};

std::vector<Model> models() {
  return {
      {"gpt2",
       50304,
       {"--layers", "12", "--width", "768", "--head-width", "64", "--context", "1024", "--batch",
        "32", "--shared-window", "256", "--routed-heads", "32", "--k", "4", "--window", "256"}},
      {"baby", 65, {"--preset", "baby"}}};
}

struct Run {
  Options options;
  std::unique_ptr<Transformer> model;
  std::vector<Batch> batches;
  std::unique_ptr<Trainer> trainer;

  Run(const Model& m, const std::string& arm, const std::string& dtype, bool record,
      Device device) {
    std::vector<std::string> words = m.options;
    words.insert(words.end(), {"--dtype", dtype});
    options = parse_options("duel", words).options;
    model = make_model(options, arm_named(arm, "--arm"), m.vocab, 1);
    model->to(device);
    for (std::int64_t i = 0; i < kBatches; ++i) {
      batches.push_back(random_batch(options.training.batch, options.model.context, m.vocab, i));
    }
    TrainerConfig config;
    config.steps = 1 << 20;
    config.record = record;
    trainer = std::make_unique<Trainer>(*model, config, [this](std::int64_t i) {
      return batches[static_cast<std::size_t>(i % kBatches)];
    });
    reset_peak_memory(DeviceType::cuda);
    steps(kWarmup);
    synchronize(device);
  }
  // As a session does: a step is queued before the result of the one before is read.
  void steps(int count) const {
    for (int i = 0; i < count; ++i) {
      trainer->queue_step();
      while (trainer->pending() > 1) trainer->collect();
    }
    while (trainer->pending() > 0) trainer->collect();
  }
  double tokens() const {
    return static_cast<double>(options.training.batch * options.model.context);
  }
};

void measure(const Model& m, const std::string& arm, const std::string& dtype, int steps,
             bool record, Device device) {
  using Clock = std::chrono::steady_clock;
  const Run run(m, arm, dtype, record, device);
  const auto start = Clock::now();
  run.steps(steps);
  synchronize(device);
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count() / steps;
  const double flops = 3 * run.model->total_flops_per_token(run.options.model.context);
  std::printf("%-6s %-6s %-5s %9.2f %12.0f %10.2f %10.0f\n", m.name, arm.c_str(), dtype.c_str(),
              seconds * 1e3, run.tokens() / seconds,
              static_cast<double>(memory_stats(DeviceType::cuda).peak_bytes) / 1e9,
              flops * run.tokens() / seconds / 1e12);
  std::fflush(stdout);
}

void by_slot(const Model& m, const std::string& arm, const std::string& dtype, Device device) {
  const Run run(m, arm, dtype, false, device);
  std::printf("%s, %s, %s: one step\n", m.name, arm.c_str(), dtype.c_str());
  const SlotTimes watch;
  run.steps(1);
  synchronize(device);
  watch.print();
}

int run(int argc, char** argv) {
  const Device device = cuda::device(0);
  const std::string model = option(argc, argv, "--model", "");
  const std::string arm = option(argc, argv, "--arm", "");
  const std::string dtype = option(argc, argv, "--dtype", "bf16");
  const int steps = std::atoi(option(argc, argv, "--steps", "40").c_str());
  const bool slots = flag(argc, argv, "--by-slot");
  if (!slots) {
    std::printf("%-6s %-6s %-5s %9s %12s %10s %10s\n", "model", "arm", "dtype", "step ms",
                "tokens/s", "GB", "TFLOP/s");
  }
  for (const Model& m : models()) {
    if (!model.empty() && model != m.name) continue;
    for (const std::string each : {"dense", "aspa"}) {
      if (!arm.empty() && arm != each) continue;
      if (slots) {
        by_slot(m, each, dtype, device);
      } else {
        measure(m, each, dtype, steps, !flag(argc, argv, "--eager"), device);
      }
    }
  }
  return 0;
}

}  // namespace
}  // namespace proteus::bench

int main(int argc, char** argv) {
  if (proteus::cuda::device_count() == 0) {
    std::puts("cuda_train_bench: no GPU here");
    return 0;
  }
  try {
    return proteus::bench::run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "cuda_train_bench: %s\n", error.what());
    return 2;
  }
}
