// Trains a small ASPA model on a text, the built-in one or a file, and lets it write on.
#include <proteus/aspa/attention.h>
#include <proteus/train/corpus.h>
#include <proteus/train/dataset.h>
#include <proteus/train/generate.h>
#include <proteus/train/trainer.h>

#include <cstdio>

using namespace proteus;

int main(int argc, char** argv) {
  const Dataset text =
      argc > 1 ? Dataset::from_file(argv[1], TokenizerKind::chars)
               : Dataset::from_text(synthetic_corpus(), TokenizerKind::chars, "stories");

  TransformerConfig config;
  config.vocab = text.tokenizer().vocab();
  config.context = 64;
  config.layers = 2;
  config.width = 64;
  Transformer model(config, [](const AttentionSite& site) {
    AspaConfig aspa;
    aspa.width = 64;
    aspa.head_width = 16;
    aspa.shared_window = 16;
    aspa.routed_heads = 8;
    aspa.k = 2;      // a token enters two of the eight
    aspa.alpha = 1;  // from exact dense attention (0) to linear time (1)
    return std::make_unique<AspaAttention>(aspa, site.output_std, site.init, site.generator);
  });

  TrainerConfig training;
  training.steps = 200;
  training.lr = 3e-3;
  Trainer trainer(model, training, [&](std::int64_t i) { return text.random_batch(1, i, 8, 64); });
  while (!trainer.finished()) {
    const StepResult result = trainer.step();
    if (result.step % 50 == 0) std::printf("loss %.3f\n", result.loss);
  }
  std::printf("%s\n", generate(model, text.tokenizer(), {.prompt = "The "}, 1).text.c_str());
}
