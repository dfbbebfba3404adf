// What the last of 64 tokens sees: dense, by a window of 8, and by the window and a bank of 8.
#include <proteus/aspa/attention.h>

#include <cstdio>
#include <string>

using namespace proteus;

constexpr std::int64_t C = 16;
constexpr std::int64_t T = 64;

// A token is seen where the last output's gradient reaches it.
std::string seen(double alpha, std::int64_t slots, std::uint64_t seed) {
  AspaConfig config;
  config.width = C;
  config.head_width = 8;
  config.shared_heads = 0;
  config.routed_heads = 1;  // one stream that every token enters
  config.k = 1;
  config.anchors = 1;
  config.window = 8;
  config.key_shift = false;  // otherwise a key shows the token before it, too
  config.alpha = alpha;
  config.bank.slots = slots;
  config.bank.stride = 16;
  Generator init(1);
  Generator dropout(2);
  AspaAttention layer(config, 0.2, init, dropout);
  const Variable x(Tensor::randn({1, T, C}, {seed, 0}), true);
  Tensor last = Tensor::zeros({1, T, C});
  last.slice(1, T - 1, T).fill_(1);
  layer.forward(x).backward(last);
  std::string out;
  for (std::int64_t t = 0; t < T; ++t) {
    bool reached = false;
    for (const double d : x.grad().select(0, 0).slice(0, t, t + 1).to_vector()) {
      reached = reached || d != 0;
    }
    out += reached ? '#' : '.';
  }
  return out;
}

int main() {
  for (const std::uint64_t text : {3, 4}) {
    std::printf("text %d\n", static_cast<int>(text) - 2);
    std::printf("  dense   %s\n", seen(0, 0, text).c_str());
    std::printf("  window  %s\n", seen(1, 0, text).c_str());
    std::printf("  bank    %s\n", seen(1, 8, text).c_str());
  }
}
