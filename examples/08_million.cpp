// A long sequence in one pass through one layer at alpha = 1: work and memory of a token stay the
// same. usage: 08_million [TOKENS]; up to 16,384 tokens by default.
#include <proteus/aspa/attention.h>
#include <proteus/autograd/tape.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>

using namespace proteus;

int main(int argc, char** argv) {
  const std::int64_t most = argc > 1 ? std::atoll(argv[1]) : 16384;
  const NoGradGuard no_grad;
  AspaConfig config;
  config.width = 64;
  config.head_width = 16;
  config.shared_heads = 1;
  config.routed_heads = 16;
  config.k = 2;
  Generator init(1);
  Generator dropout(2);
  AspaAttention aspa(config, 0.2, init, dropout);
  aspa.set_training(false);
  const DenseAttention dense({.width = 64, .heads = 4, .head_width = 16}, 0.2, init, dropout);

  std::printf(" tokens   bytes a token   attention FLOP a token   of dense attention\n");
  for (std::int64_t T = 4096; T <= most; T *= 2) {
    const Tensor x = Tensor::randn({1, T, config.width}, {1, 0});
    const auto live = memory_stats(DeviceType::cpu).live_bytes;
    reset_peak_memory(DeviceType::cpu);
    const auto begin = std::chrono::steady_clock::now();
    aspa.forward(Variable(x));
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
    const auto peak = memory_stats(DeviceType::cpu).peak_bytes - live;
    std::printf("%7lld %15lld %24.0f %20.0f\n", static_cast<long long>(T),
                static_cast<long long>(peak / T), aspa.attention_flops_per_token(T),
                dense.attention_flops_per_token(T));
    std::fprintf(stderr, "%lld tokens: %.2f s\n", static_cast<long long>(T), taken.count());
  }
}
