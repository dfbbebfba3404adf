// Decoding against length, with keys and values kept in f32 and in 8-bit codes.
//
// usage: decode_bench MAX_LENGTH [LAYER…]
//   one attention layer (width 512, heads of 64): dense with 8 heads; ASPA with 2 shared heads
//   (window 64) and 16 routed ones (k = 2, W = 128); aspa+bank, with 32 slots more. Per length
//   256, 512, … MAX_LENGTH: tokens per second of CPU time (one thread; what else the machine does
//   counts less) and bytes of state. The two caches are stepped in turns.
// usage: decode_bench CHECKPOINT DATA TOKENS
//   nats per token of the first TOKENS of the validation part, decoded one by one with each cache
//   in sequences of the model's context.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
#include <ctime>
#include <string>
#include <vector>

#include "aspa/attention.h"
#include "autograd/tape.h"
#include "nn/attention.h"
#include "tensor/parallel.h"
#include "train/commands/model_file.h"
#include "train/dataset.h"

namespace proteus {
namespace {

constexpr std::int64_t kWidth = 512;
constexpr std::int64_t kHeadWidth = 64;
constexpr std::int64_t kShortest = 256;
constexpr int kBlocks = 12;       // timed blocks per length and cache, of which the median counts
constexpr int kBlockTokens = 16;  // tokens of a block
constexpr double kOutputStd = 0.02;
constexpr std::array kCaches = {CacheType::full, CacheType::int8};
constexpr std::array kCacheNames = {"f32", "int8"};

std::unique_ptr<Attention> make_layer(const std::string& arm, Generator& generator) {
  Generator init(1);
  if (arm == "dense") {
    DenseAttentionConfig c;
    c.width = kWidth;
    c.heads = kWidth / kHeadWidth;
    c.head_width = kHeadWidth;
    return std::make_unique<DenseAttention>(c, kOutputStd, init, generator);
  }
  AspaConfig c;
  c.width = kWidth;
  if (arm == "aspa+bank") c.bank.slots = 32;
  return std::make_unique<AspaAttention>(c, kOutputStd, init, generator);
}

double thread_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

struct Sequence {
  std::unique_ptr<AttentionState> state;
  std::uint64_t length = 0;

  double step(Attention& layer, int tokens) {
    AttentionState* const states[] = {state.get()};
    double seconds = 0;
    for (int i = 0; i < tokens; ++i, ++length) {
      const Tensor x = Tensor::randn({1, kWidth}, {3, length});
      const double start = thread_seconds();
      layer.step(x, states);
      seconds += thread_seconds() - start;
    }
    return seconds;
  }
};

void measure_arm(const std::string& arm, std::int64_t longest) {
  Generator generator(2);
  const auto layer = make_layer(arm, generator);
  layer->set_training(false);
  std::array<Sequence, 2> sequences;
  for (std::size_t c = 0; c < 2; ++c) sequences[c].state = layer->make_state(kCaches[c]);
  for (std::int64_t length = kShortest; length <= longest; length *= 2) {
    const auto before = static_cast<std::uint64_t>(length - kBlocks * kBlockTokens);
    for (Sequence& s : sequences) s.step(*layer, static_cast<int>(before - s.length));
    std::array<std::vector<double>, 2> times;
    for (int block = 0; block < kBlocks; ++block) {
      for (std::size_t c = 0; c < 2; ++c) {
        times[c].push_back(sequences[c].step(*layer, kBlockTokens));
      }
    }
    for (std::size_t c = 0; c < 2; ++c) {
      std::nth_element(times[c].begin(), times[c].begin() + kBlocks / 2, times[c].end());
      fmt::print("| {} | {} | {} | {:.0f} | {} |\n", arm, kCacheNames[c], length,
                 kBlockTokens / times[c][kBlocks / 2], sequences[c].state->bytes());
    }
    std::fflush(stdout);
  }
}

int speed(std::int64_t longest, std::vector<std::string> arms) {
  if (arms.empty()) arms = {"dense", "aspa", "aspa+bank"};
  fmt::print("| layer | cache | length | tokens/s | state bytes |\n|---|---|---|---|---|\n");
  for (const std::string& arm : arms) measure_arm(arm, longest);
  return 0;
}

double nats(const Tensor& logits, std::int32_t target) {
  const auto values = logits.to_vector();
  const double top = *std::max_element(values.begin(), values.end());
  double sum = 0;
  for (const double v : values) sum += std::exp(v - top);
  return top + std::log(sum) - values[static_cast<std::size_t>(target)];
}

int loss(const std::string& checkpoint, const std::string& data, std::int64_t tokens) {
  const LoadedModel loaded = load_model(checkpoint);
  Transformer& model = *loaded.model;
  const Dataset dataset = Dataset::from_file(data, loaded.tokenizer);
  const std::int64_t context = std::min(model.config().context, tokens);
  fmt::print(
      "| cache | tokens | nats per token | largest difference of a token |\n|---|---|---|---|\n");
  std::vector<double> first;
  for (std::size_t c = 0; c < 2; ++c) {
    std::vector<double> losses;
    for (std::int64_t i = 0; i < tokens / context; ++i) {
      const Batch batch = dataset.sequential_batch(Split::validation, i, 1, context);
      DecodeState state = model.begin_sequence(kCaches[c]);
      DecodeState* const states[] = {&state};
      const auto length = batch.inputs.size(1);
      for (std::int64_t t = 0; t < length; ++t) {
        const Tensor logits = model.step(batch.inputs.select(0, 0).slice(0, t, t + 1), states);
        losses.push_back(nats(logits, batch.targets.data<std::int32_t>()[t]));
      }
    }
    double sum = 0;
    double worst = 0;
    for (std::size_t i = 0; i < losses.size(); ++i) {
      sum += losses[i];
      if (c == 1) worst = std::max(worst, std::abs(losses[i] - first[i]));
    }
    fmt::print("| {} | {} | {:.5f} | {:.4f} |\n", kCacheNames[c], losses.size(),
               sum / static_cast<double>(losses.size()), worst);
    first = losses;
  }
  return 0;
}

}  // namespace
}  // namespace proteus

int main(int argc, char** argv) {
  try {
    proteus::set_num_threads(1);
    if (argc > 1 && std::isdigit(static_cast<unsigned char>(argv[1][0]))) {
      return proteus::speed(std::stoll(argv[1]), {argv + 2, argv + argc});
    }
    if (argc == 4) return proteus::loss(argv[1], argv[2], std::stoll(argv[3]));
    fmt::print(stderr,
               "usage: decode_bench MAX_LENGTH [LAYER...] | decode_bench CHECKPOINT DATA TOKENS\n");
  } catch (const std::exception& error) {
    fmt::print(stderr, "decode_bench: {}\n", error.what());
  }
  return 2;
}
