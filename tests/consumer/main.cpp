// Builds a small ASPA model from the installed library, takes a few training steps and checks that
// the loss falls.
#include <proteus/aspa/attention.h>
#include <proteus/nn/transformer.h>
#include <proteus/train/trainer.h>

#include <cstdio>
#include <memory>

int main() {
  using namespace proteus;
  TransformerConfig config;
  config.vocab = 16;
  config.context = 16;
  config.layers = 2;
  config.width = 32;
  Transformer model(config, [](const AttentionSite& site) {
    AspaConfig aspa;
    aspa.width = 32;
    aspa.head_width = 16;
    aspa.shared_heads = 1;
    aspa.shared_window = 8;
    aspa.routed_heads = 4;
    aspa.k = 2;
    aspa.window = 8;
    return std::make_unique<AspaAttention>(aspa, site.output_std, site.init, site.generator);
  });
  TrainerConfig training;
  training.steps = 40;
  training.lr = 1e-2;
  training.warmup = 5;
  Trainer trainer(model, training, [](std::int64_t) {
    // The sequence 0, 1, 2, … is easy to continue.
    Tensor inputs = Tensor::arange(16, DType::i32).reshape({1, 16});
    Tensor targets = Tensor::empty({1, 16}, DType::i32);
    for (int t = 0; t < 16; ++t) targets.data<std::int32_t>()[t] = (t + 1) % 16;
    return Batch{inputs, targets};
  });
  double first = 0;
  double last = 0;
  while (!trainer.finished()) {
    last = trainer.step().loss;
    if (trainer.steps_done() == 1) first = last;
  }
  std::printf("loss %.3f -> %.3f\n", first, last);
  return last < first / 2 ? 0 : 1;
}
