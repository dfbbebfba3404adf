// A router learns. Tokens come from four clusters, and each cluster wants another linear map; four
// experts, of which a token enters one. Nobody says which expert is whose.
#include <proteus/aspa/experts.h>
#include <proteus/autograd/elementwise.h>
#include <proteus/autograd/reduce.h>
#include <proteus/optim/adamw.h>
#include <proteus/tensor/parallel.h>

#include <array>
#include <cstdio>

using namespace proteus;

constexpr std::int64_t C = 16;
constexpr std::int64_t kClusters = 4;
constexpr std::int64_t kTokens = 256;

struct Task {
  Tensor centres = Tensor::randn({kClusters, C}, {5, 0}, DType::f32, 0, 1);
  Tensor maps = Tensor::randn({kClusters, C}, {5, 1}, DType::f32, 0, 2);

  // Token t is of cluster t % 4: x = centre + noise, wanted = map ⊙ noise.
  void draw(std::uint64_t step, Tensor& x, Tensor& wanted) const {
    const Tensor noise = Tensor::randn({kTokens, C}, {6, step}, DType::f32, 0, 0.5);
    x = noise.clone();
    wanted = noise.clone();
    for (std::int64_t i = 0; i < kTokens * C; ++i) {
      const std::int64_t j = i / C % kClusters * C + i % C;
      x.data<float>()[i] += centres.data<float>()[j];
      wanted.data<float>()[i] *= maps.data<float>()[j];
    }
  }
};

// Of the tokens of a cluster, the share that enters each expert.
void show(GatedMlp& layer, const Task& task) {
  Tensor x, wanted;
  task.draw(1'000'000, x, wanted);
  const Tensor chosen = layer.select(Variable(x.reshape({1, kTokens, C})));
  std::array<std::array<int, kClusters>, kClusters> counts{};
  for (std::int64_t t = 0; t < kTokens; ++t) {
    ++counts[static_cast<std::size_t>(t % kClusters)]
            [static_cast<std::size_t>(chosen.data<std::int32_t>()[t])];
  }
  for (const auto& row : counts) {
    for (const int n : row)
      std::printf("%5d%%", n * 100 * static_cast<int>(kClusters) / static_cast<int>(kTokens));
    std::printf("\n");
  }
}

double train(bool frozen) {
  GatedMlpConfig config;
  config.width = C;
  config.routed_heads = kClusters;  // experts
  config.k = 1;
  config.gates_per_head = 1;
  config.routing_width = 8;
  config.expert_width = 16;
  config.frozen_router = frozen;
  Generator init(3);
  GatedMlp layer(config, 0.2, init);
  std::vector<ParameterRef> parameters;
  for (const Parameter& p : layer.parameters()) parameters.push_back({p.name, p.variable, p.decay});
  AdamW optimizer(parameters, {});
  const Task task;
  if (!frozen) show(layer, task);
  double loss = 0;
  for (std::uint64_t step = 0; step < 600; ++step) {
    Tensor x, wanted;
    task.draw(step, x, wanted);
    const Variable y = layer.forward(Variable(x.reshape({1, kTokens, C})));
    const Variable error = mean(square(sub(y, Variable(wanted.reshape({1, kTokens, C})))));
    layer.zero_grad();
    error.backward();
    optimizer.step(5e-3);
    layer.after_step(1);
    loss = error.value().item();
  }
  if (!frozen) {
    std::printf("after training\n");
    show(layer, task);
  }
  return loss;
}

int main() {
  set_num_threads(1);
  std::printf("cluster by expert, before training\n");
  const double learned = train(false);
  std::printf("loss %.2f; with the router as drawn %.2f\n", learned, train(true));
}
