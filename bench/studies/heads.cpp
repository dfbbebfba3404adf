// What more routed heads cost at equal k: the forward and backward step of one ASPA layer, routing
// and balancing included, for several numbers of heads, measured in turns. The router is also
// measured alone (projection, all z, selection, both roles, forward).
//
// usage: heads_study TOKENS K ROUNDS HEADS...
// A step has TOKENS tokens in sequences of 2,048; width 512, heads of 64, 2 shared ones with a
// window of 64, K routed heads a token, one gate a head, a routing width of 32. Threads:
// OMP_NUM_THREADS. Prints a table of the fastest round: milliseconds of CPU time, and the ratio to
// the first number of heads.
#include <fmt/format.h>

#include <algorithm>
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

}  // namespace
}  // namespace proteus

int main(int argc, char** argv) {
  if (argc < 5) {
    fmt::print(stderr, "usage: heads_study TOKENS K ROUNDS HEADS...\n");
    return 2;
  }
  try {
    std::vector<std::int64_t> heads;
    for (int i = 4; i < argc; ++i) heads.push_back(std::stoll(argv[i]));
    return proteus::run(std::stoll(argv[1]), std::stoll(argv[2]), std::stoi(argv[3]), heads);
  } catch (const std::exception& error) {
    fmt::print(stderr, "heads_study: {}\n", error.what());
    return 2;
  }
}
