// Prototypes follow what their gates take; a gate that nobody enters dies and comes back.
#include <proteus/aspa/prototypes.h>

#include <cmath>
#include <cstdio>

using namespace proteus;

constexpr std::int64_t G = 4;  // gates, one head each
constexpr std::int64_t R = 8;
constexpr std::int64_t kTokens = 64;

float dot(const float* a, const float* b) {
  float sum = 0;
  for (std::int64_t i = 0; i < R; ++i) sum += a[i] * b[i];
  return sum;
}

// Tokens of one step: around G centres.
Tensor tokens(std::uint64_t step, const Tensor& centres) {
  Tensor x = Tensor::randn({kTokens, R}, {2, step}, DType::f32, 0, 0.2);
  for (std::int64_t t = 0; t < kTokens; ++t) {
    for (std::int64_t i = 0; i < R; ++i) {
      x.data<float>()[t * R + i] += centres.data<float>()[t % G * R + i];
    }
  }
  return x;
}

// Every token enters the gate whose prototype is nearest: ω = 1 there.
GateUpdate collect(const GateState& gates, const Tensor& x) {
  GateUpdate update{Tensor::zeros({G}), Tensor::zeros({G, R}), x};
  for (std::int64_t t = 0; t < kTokens; ++t) {
    const float* token = x.data<float>() + t * R;
    std::int64_t best = 0;
    for (std::int64_t g = 1; g < G; ++g) {
      const float* p = gates.p.data<float>();
      if (dot(p + g * R, token) > dot(p + best * R, token)) best = g;
    }
    update.weight_sum.data<float>()[best] += 1;
    for (std::int64_t i = 0; i < R; ++i) {
      update.weighted_sum.data<float>()[best * R + i] += token[i];
    }
  }
  return update;
}

void show(const char* when, const GateState& gates, const Tensor& centres) {
  std::printf("%s\n", when);
  for (std::int64_t g = 0; g < G; ++g) {
    const float* p = gates.p.data<float>() + g * R;
    std::printf("  gate %lld:", static_cast<long long>(g));
    for (std::int64_t c = 0; c < G; ++c) {
      const float* centre = centres.data<float>() + c * R;
      std::printf(" %5.2f", dot(p, centre) / std::sqrt(dot(centre, centre)));
    }
    std::printf("   N %4.1f\n", gates.N.data<float>()[g]);
  }
}

int main() {
  const Tensor centres = Tensor::randn({G, R}, {1, 0});
  Tensor head_of_gate = Tensor::arange(G, DType::i32);
  Tensor p = Tensor::zeros({G, R});  // along the axes
  for (std::int64_t g = 0; g < G; ++g) p.data<float>()[g * R + g] = 1;
  const GateState gates{.w = Tensor::zeros({G, R}),
                        .p = p,
                        .N = Tensor::full({G}, 1),
                        .P = p.clone(),
                        .mass = Tensor::full({G}, 1),
                        .head_of_gate = head_of_gate,
                        .starving = Tensor::zeros({G}, DType::i32)};
  PrototypeConfig config;
  config.ema = 0.9;
  config.dead_steps = 20;
  show("cosines of prototypes and centres, at the start", gates, centres);
  for (std::uint64_t step = 1; step <= 200; ++step) {
    const GateUpdate update = collect(gates, tokens(step, centres));
    update_prototypes(config, gates, update);
    if (!dead_gates(config, gates).empty()) {
      for (const std::int64_t g : dead_gates(config, gates)) {
        std::printf("step %lld: gate %lld is dead\n", static_cast<long long>(step),
                    static_cast<long long>(g));
      }
      revive_gates(config, gates, update, {4, step});
    }
  }
  show("after 200 steps", gates, centres);
}
