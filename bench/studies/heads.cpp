// What more routed heads cost at equal k: the forward and backward step of one ASPA layer, routing
// and balancing included, for several numbers of heads, measured in turns. The router is also
// measured alone (projection, all z, selection, both roles, forward).
//
// usage: heads_study TOKENS K ROUNDS HEADS... | heads_study load HEADS K STEPS [ROLE_GAP]
// A step has TOKENS tokens in sequences of 2,048; width 512, heads of 64, 2 shared ones with a
// window of 64, K routed heads a token, one gate a head, a routing width of 32. Threads:
// OMP_NUM_THREADS. Prints a table of the fastest round: milliseconds of CPU time, and the ratio to
// the first number of heads.
//
// `load` asks instead how even the heads' loads become: a layer of width 64 with heads of 8 sees
// STEPS batches of 16,384 tokens that lie around 512 centres, some much more often than others,
// and its thresholds and prototypes follow them (u = 0.05, settling to 0). Then it reports MaxVio
// over 524,288 new tokens, beside what chance alone gives: the largest of HEADS Poisson numbers of
// the same mean. ROLE_GAP is the largest difference of a head's two thresholds (0).
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <ctime>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "aspa/attention.h"
#include "autograd/tape.h"
#include "tensor/parallel.h"
#include "train/report.h"

namespace proteus {
namespace {

constexpr std::int64_t kLength = 2048;

AspaConfig config_with(std::int64_t heads, std::int64_t k) {
  AspaConfig c;
  c.width = 512;
  c.head_width = 64;
  c.shared_heads = 2;
  c.shared_window = 64;
  c.routed_heads = heads;
  c.k = k;
  c.window = 128;
  c.gates_per_head = 1;
  c.routing_width = 32;
  return c;
}

// CPU time of all threads: what others do on the machine counts little. To be run with
// OMP_WAIT_POLICY=passive, so that waiting takes none.
double seconds_of(auto&& fn) {
  const std::clock_t start = std::clock();
  fn();
  return static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
}

struct Layer {
  Generator init{1};
  Generator dropout{2};
  AspaAttention attention;
  Variable x;
  Tensor dy;
  double step = std::numeric_limits<double>::infinity();
  double router = step;

  Layer(std::int64_t heads, std::int64_t k, std::int64_t tokens)
      : attention(config_with(heads, k), 0.02, init, dropout),
        x(Tensor::randn({tokens / kLength, kLength, 512}, {3, 0}), true),
        dy(Tensor::randn(x.shape(), {4, 0})) {
    attention.set_training(true);
  }

  void measure() {
    router = std::min(router, seconds_of([&] { attention.select(x); }));
    step = std::min(step, seconds_of([&] {
                      attention.forward(x).backward(dy);
                      attention.after_step(1);
                    }));
    attention.zero_grad();
    x.zero_grad();
  }
};

int run(std::int64_t tokens, std::int64_t k, int rounds, const std::vector<std::int64_t>& heads) {
  std::vector<std::unique_ptr<Layer>> layers;
  for (const std::int64_t h : heads) layers.push_back(std::make_unique<Layer>(h, k, tokens));
  for (const auto& layer : layers) {
    layer->measure();  // warm
    layer->step = layer->router = std::numeric_limits<double>::infinity();
  }
  for (int r = 0; r < rounds; ++r) {
    for (const auto& layer : layers) layer->measure();
  }
  Table table({"routed heads", "step CPU ms", "ratio", "router CPU ms"});
  for (std::size_t i = 0; i < layers.size(); ++i) {
    table.add_row({fmt::to_string(heads[i]), format_number(layers[i]->step * 1e3, 1),
                   format_number(layers[i]->step / layers[0]->step, 2),
                   format_number(layers[i]->router * 1e3, 1)});
  }
  fmt::print("{} tokens a step, k = {}, {} threads, fastest of {} rounds in turns\n{}", tokens, k,
             num_threads(), rounds, table.text());
  return 0;
}

constexpr std::int64_t kBatch = 16384;

// Tokens around centres: the c-th of them is taken with a probability that falls like 1/(c + 1).
Tensor clustered_tokens(std::int64_t width, std::uint64_t batch) {
  constexpr std::int64_t kCentres = 512;
  constexpr double kSpread = 0.7;
  const Tensor centres = Tensor::randn({kCentres, width}, {5, 0});
  const Tensor draw = Tensor::rand({kBatch}, {6, batch});
  Tensor x = Tensor::randn({kBatch, width}, {7, batch}, DType::f32, 0, kSpread);
  for (std::int64_t n = 0; n < kBatch; ++n) {
    // The inverse of the distribution log(c + 1) / log(kCentres + 1).
    const double c = std::pow(kCentres + 1.0, static_cast<double>(draw.data<float>()[n])) - 1;
    const auto centre = std::min<std::int64_t>(kCentres - 1, static_cast<std::int64_t>(c));
    const float* from = centres.data<float>() + centre * width;
    float* to = x.data<float>() + n * width;
    for (std::int64_t i = 0; i < width; ++i) to[i] += from[i];
  }
  return x.reshape({kBatch / kLength, kLength, width});
}

// Mean of the largest of H Poisson numbers, over their mean, minus 1.
double chance_of_poisson(double mean, std::int64_t H) {
  double log_p = -mean;  // of 0
  double below = 0;
  double largest = 0;
  const auto last = static_cast<std::int64_t>(mean + 20 * std::sqrt(mean) + 20);
  for (std::int64_t m = 0; m < last; ++m) {
    below += std::exp(log_p);
    largest += 1 - std::pow(std::min(below, 1.0), static_cast<double>(H));
    log_p += std::log(mean / static_cast<double>(m + 1));
  }
  return largest / mean - 1;
}

int report_load(std::int64_t heads, std::int64_t k, std::int64_t steps, double role_gap) {
  constexpr std::uint64_t kEvaluation = 1000000;  // batches that training does not see
  constexpr std::uint64_t kEvaluationBatches = 32;
  AspaConfig c = config_with(heads, k);
  c.width = 64;
  c.head_width = 8;
  c.shared_heads = 0;
  c.balance.u = 0.05;
  c.balance.max_role_gap = role_gap;
  Generator init(1);
  Generator dropout(2);
  AspaAttention layer(c, 0.02, init, dropout);
  const NoGradGuard no_grad;
  const auto load = [&] {
    layer.set_training(false);
    layer.gating().begin_tally();
    for (std::uint64_t b = 0; b < kEvaluationBatches; ++b) {
      layer.select(Variable(clustered_tokens(c.width, kEvaluation + b)));
    }
    layer.gating().end_tally();
    return *layer.telemetry().tally;
  };
  const double mean =
      static_cast<double>(kBatch * k) * kEvaluationBatches / static_cast<double>(heads);
  Table table({"after steps", "MaxVio of queries", "of keys", "of both", "chance: a role", "both"});
  const auto add_row = [&](std::int64_t done) {
    const LoadTally tally = load();
    table.add_row({fmt::to_string(done), format_number(tally.query.max_vio, 3),
                   format_number(tally.key.max_vio, 3), format_number(tally.both.max_vio, 3),
                   format_number(chance_of_poisson(mean, heads), 3),
                   format_number(chance_of_poisson(2 * mean, heads), 3)});
  };
  add_row(0);
  for (std::int64_t i = 0; i < steps; ++i) {
    layer.set_training(true);
    layer.forward(Variable(clustered_tokens(c.width, static_cast<std::uint64_t>(i))));
    layer.after_step(1 - static_cast<double>(i) / static_cast<double>(steps));
  }
  add_row(steps);
  fmt::print("{} heads, k = {}, {} tokens a step\n{}", heads, k, kBatch, table.text());
  return 0;
}

}  // namespace
}  // namespace proteus

int main(int argc, char** argv) {
  if (argc < 5) {
    fmt::print(stderr,
               "usage: heads_study TOKENS K ROUNDS HEADS... | heads_study load HEADS K STEPS "
               "[ROLE_GAP]\n");
    return 2;
  }
  try {
    if (std::string(argv[1]) == "load") {
      return proteus::report_load(std::stoll(argv[2]), std::stoll(argv[3]), std::stoll(argv[4]),
                                  argc > 5 ? std::stod(argv[5]) : 0);
    }
    std::vector<std::int64_t> heads;
    for (int i = 4; i < argc; ++i) heads.push_back(std::stoll(argv[i]));
    return proteus::run(std::stoll(argv[1]), std::stoll(argv[2]), std::stoi(argv[3]), heads);
  } catch (const std::exception& error) {
    fmt::print(stderr, "heads_study: {}\n", error.what());
    return 2;
  }
}
