// Decoding on a GPU: GPT-2 124M (12 layers, width 768, vocabulary 50,304) and `baby` (6 layers,
// width 384), rotary positions, the likeliest token taken in the step.
//   cuda_decode_bench [--model gpt2|baby] [--arm ARM] [--batch B] [--context T] [--cache bf16|int8]
//   [--by-slot]
// A step appends one token to each of B sequences that have T already: queued kernel by kernel, and
// recorded once and replayed. Their keys and values are zeros, which take as long as others.
// tokens/s is of replays; MB what a step has to read: the parameters that it uses in bf16, and the
// keys and values that it sees; the last column is the time of that at the rate of a large copy, as
// a percentage of the replay's. --by-slot times every kernel call of one step on its own instead.
// bench/peers/decode.py measures PyTorch on the same shapes.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "bench/program_options.h"
#include "bench/slot_times.h"
#include "cuda/device.h"
#include "nn/decoder.h"
#include "tensor/error.h"
#include "tensor/ops/draw.h"
#include "train/models.h"

namespace proteus::bench {
namespace {

constexpr double kHeadWidth = 64;
constexpr int kWarmup = 3;
constexpr int kSteps = 20;  // of a round
constexpr int kRounds = 5;  // of which the median counts

struct Model {
  const char* name;
  std::int64_t vocab;
  std::vector<std::string> options;
};

std::vector<Model> models() {
  return {{"gpt2",
           50304,
           {"--layers", "12", "--width", "768", "--head-width", "64", "--shared-window", "256",
            "--routed-heads", "32", "--k", "4", "--window", "256"}},
          {"baby", 65, {"--preset", "baby"}}};
}

struct Run {
  std::string arm, cache;
  std::int64_t batch = 1, context = 0;
};

double seconds_of(const std::function<void()>& work, Device device) {
  using Clock = std::chrono::steady_clock;
  synchronize(device);
  const auto start = Clock::now();
  work();
  synchronize(device);
  return std::chrono::duration<double>(Clock::now() - start).count();
}

template <class F>
double median_of(F&& seconds) {
  std::vector<double> all;
  for (int i = 0; i < kRounds; ++i) all.push_back(seconds());
  std::nth_element(all.begin(), all.begin() + kRounds / 2, all.end());
  return all[kRounds / 2];
}

/// Bytes per second of a large copy, read and written.
double copy_rate(Device device) {
  constexpr std::int64_t kBytes = std::int64_t{1} << 30;
  const Tensor from = Tensor::zeros({kBytes}, DType::i8, device);
  const Tensor to = Tensor::zeros({kBytes}, DType::i8, device);
  return 2.0 * kBytes / median_of([&] { return seconds_of([&] { to.copy_(from); }, device); });
}

std::unique_ptr<Transformer> make(const Model& m, const std::string& arm, Device device) {
  std::vector<std::string> words = m.options;
  words.insert(words.end(), {"--dtype", "bf16"});
  auto model =
      make_model(parse_options("duel", words).options, arm_named(arm, "--arm"), m.vocab, 1);
  model->set_training(false);
  model->to(device);
  return model;
}

Decoder make_decoder(Transformer& model, const Run& run, bool record) {
  return Decoder(model,
                 {.batch = run.batch,
                  .longest = run.context + kSteps,
                  .cache = run.cache == "int8" ? CacheType::int8 : CacheType::full,
                  .record = record},
                 [](const Tensor& tokens, const Tensor& logits, const Tensor& positions) {
                   ops::draw_tokens(tokens, logits, positions, {.temperature = 0});
                 });
}

void steps(Decoder& decoder, int count) {
  for (int i = 0; i < count; ++i) decoder.step();
}

double step_seconds(Transformer& model, const Run& run, bool record, Device device) {
  Decoder decoder = make_decoder(model, run, record);
  steps(decoder, kWarmup);
  return median_of([&] {
           decoder.set_position(run.context);
           return seconds_of([&] { steps(decoder, kSteps); }, device);
         }) /
         kSteps;
}

// Parameters, and keys and values in sight. One token uses the heads that it enters; a batch is
// taken to use all.
double bytes_read(const Transformer& model, const Run& run) {
  const std::int64_t parameters =
      run.batch == 1 ? model.active_parameter_count() : model.parameter_count();
  // Four operations a visible pair and element of a head, the mean over a sequence: in dense
  // attention half of what its last token sees.
  const double seen = model.attention_flops_per_token(run.context) / 4;
  const double each = run.cache == "int8" ? 1 + 4.0 / kHeadWidth : 2;
  const double cached = 2 * seen * (run.arm == "dense" ? 2 : 1) * each;
  return 2.0 * static_cast<double>(parameters) + static_cast<double>(run.batch) * cached;
}

void measure(const Model& m, Transformer& model, const Run& run, double copy, Device device) {
  const double queued = step_seconds(model, run, false, device);
  const double replayed = step_seconds(model, run, true, device);
  const double bytes = bytes_read(model, run);
  std::printf("%-5s %-6s %-5s %5lld %7lld %10.3f %10.3f %10.0f %9.0f %9.0f\n", m.name,
              run.arm.c_str(), run.cache.c_str(), static_cast<long long>(run.batch),
              static_cast<long long>(run.context), queued * 1e3, replayed * 1e3,
              static_cast<double>(run.batch) / replayed, bytes / 1e6,
              100 * bytes / copy / replayed);
  std::fflush(stdout);
}

void by_slot(const Model& m, Transformer& model, const Run& run, Device device) {
  Decoder decoder = make_decoder(model, run, false);
  steps(decoder, kWarmup);
  decoder.set_position(run.context);
  std::printf("%s, %s, %s, batch %lld, %lld tokens: one step\n", m.name, run.arm.c_str(),
              run.cache.c_str(), static_cast<long long>(run.batch),
              static_cast<long long>(run.context));
  synchronize(device);
  const SlotTimes watch;
  decoder.step();
  synchronize(device);
  watch.print();
}

std::vector<Run> runs(const std::function<std::string(const char*)>& asked) {
  const auto wanted = [&](const char* name, const std::string& value) {
    return asked(name).empty() || asked(name) == value;
  };
  std::vector<Run> all;
  for (const char* arm : {"dense", "aspa"}) {
    for (const std::int64_t batch : {1, 32}) {
      for (const std::int64_t context : {1024, 8192, 65536}) {
        for (const char* cache : {"bf16", "int8"}) {
          if (wanted("--arm", arm) && wanted("--batch", std::to_string(batch)) &&
              wanted("--context", std::to_string(context)) && wanted("--cache", cache)) {
            all.push_back({arm, cache, batch, context});
          }
        }
      }
    }
  }
  return all;
}

int run(int argc, char** argv) {
  const Device device = cuda::device(0);
  const auto asked = [&](const char* name) { return option(argc, argv, name); };
  const bool slots = std::any_of(
      argv, argv + argc, [](const char* word) { return std::string_view(word) == "--by-slot"; });
  const double copy = slots ? 0 : copy_rate(device);
  if (!slots) {
    std::printf("copy %.0f GB/s\n%-5s %-6s %-5s %5s %7s %10s %10s %10s %9s %9s\n", copy / 1e9,
                "model", "arm", "cache", "batch", "tokens", "queued ms", "replay ms", "tokens/s",
                "MB", "% of it");
  }
  for (const Model& m : models()) {
    if (!asked("--model").empty() && asked("--model") != m.name) continue;
    std::string arm;
    std::unique_ptr<Transformer> model;
    for (const Run& each : runs(asked)) {
      if (arm != each.arm) model = make(m, arm = each.arm, device);
      try {
        slots ? by_slot(m, *model, each, device) : measure(m, *model, each, copy, device);
      } catch (const OutOfMemory&) {
        std::printf("%s, %s, %s, batch %lld, %lld tokens: not enough memory\n", m.name,
                    each.arm.c_str(), each.cache.c_str(), static_cast<long long>(each.batch),
                    static_cast<long long>(each.context));
      }
    }
  }
  return 0;
}

}  // namespace
}  // namespace proteus::bench

int main(int argc, char** argv) {
  if (proteus::cuda::device_count() == 0) {
    std::puts("cuda_decode_bench: no GPU here");
    return 0;
  }
  try {
    return proteus::bench::run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "cuda_decode_bench: %s\n", error.what());
    return 2;
  }
}
