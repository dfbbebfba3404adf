// One layer, alpha from 0 to 1: what a token may use, what that costs, and how far the output is
// from dense attention with the same weights. To a model the two layers are the same: an Attention.
#include <proteus/aspa/attention.h>
#include <proteus/aspa/slider.h>
#include <proteus/autograd/tape.h>

#include <cmath>
#include <cstdio>

using namespace proteus;

constexpr std::int64_t C = 64;
constexpr std::int64_t T = 512;
constexpr std::int64_t kHeads = 8;
constexpr std::int64_t D = 16;

// Dense attention with the heads of an ASPA layer that has no shared ones.
void copy_weights(const AspaAttention& from, const DenseAttention& to) {
  const AspaWeights& w = from.weights();
  for (const Parameter& p : to.parameters()) {
    const Tensor& t = p.variable.value();
    if (p.name == "mu") t.copy_(w.mu.value());
    for (std::int64_t h = 0; h < kHeads; ++h) {
      if (p.name == "out.weight") {  // [C, H·D] of [H, D, C]
        t.slice(1, h * D, (h + 1) * D).copy_(w.o.value().select(0, h).transpose(0, 1));
      }
      if (p.name != "qkv.weight") continue;  // [3·H·D, C] of three [H, C, D]
      std::int64_t row = h * D;
      for (const Variable* part : {&w.q, &w.k, &w.v}) {
        t.slice(0, row, row + D).copy_(part->value().select(0, h).transpose(0, 1));
        row += kHeads * D;
      }
    }
  }
}

double distance(const Tensor& a, const Tensor& b) {
  const auto x = a.to_vector();
  const auto y = b.to_vector();
  double error = 0;
  double norm = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    error += (x[i] - y[i]) * (x[i] - y[i]);
    norm += y[i] * y[i];
  }
  return std::sqrt(error / norm);
}

int main() {
  const NoGradGuard no_grad;
  Generator init(1);
  Generator dropout(2);
  AspaConfig config;
  config.width = C;
  config.head_width = D;
  config.shared_heads = 0;
  config.routed_heads = kHeads;
  config.k = 2;
  config.window = 32;
  config.routed_rope = RopeSpan::full;
  AspaAttention aspa(config, 0.2, init, dropout);
  aspa.set_training(false);
  DenseAttention dense({.width = C, .heads = kHeads, .head_width = D, .key_shift = true}, 0.2, init,
                       dropout);
  copy_weights(aspa, dense);

  const Variable x(Tensor::randn({1, T, C}, {3, 0}));
  const Tensor expected = dense.forward(x).value();
  std::printf("alpha  heads  window  FLOP a token  distance from dense\n");
  for (const double alpha : {0.0, 0.25, 0.5, 0.75, 1.0}) {
    aspa.set_alpha(alpha);
    const double d = distance(aspa.forward(x).value(), expected);
    std::printf("%5.2f %6lld %7lld %13.0f  %.2f\n", alpha, static_cast<long long>(aspa.k()),
                static_cast<long long>(slider::window(alpha, config.window, T)),
                aspa.attention_flops_per_token(T), d);
  }
}
